package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.LoadGuard
import com.tinyqmoe.core.PolicyEvent
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineScope
import org.junit.Test
import java.io.File
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertIs

class ModelHolderTest {
    private val guardFile = File(temporaryFolder(), "loading")
    private val models = FakeModels(guardFile)
    private val events = mutableListOf<PolicyEvent>()

    private fun CoroutineScope.holder() = ModelHolder(models, LoadGuard(guardFile), this) { events += it }

    @Test
    fun `a model is loaded, and the guard holds its name meanwhile`() = onOneThread {
        val holder = holder()
        holder.open("small")
        assertEquals(ModelState.Loading("small"), holder.state.value)
        holder.settle()
        assertIs<ModelState.Ready>(holder.state.value)
        assertEquals("small", models.guardWhileLoading)
        assertFalse(guardFile.exists())
        assertEquals(listOf<PolicyEvent>(PolicyEvent.Loaded), events)
    }

    @Test
    fun `a second tap loads nothing again`() = onOneThread {
        val holder = holder()
        holder.open("small")
        holder.open("small")
        holder.settle()
        holder.open("small")
        holder.settle()
        assertEquals(listOf("small"), models.loads)
    }

    @Test
    fun `a model that would not fit is refused in words, and loaded if the user insists`() = onOneThread {
        val holder = holder()
        holder.open("large")
        holder.settle()
        assertEquals(ModelState.Refused("large", "needs memory"), holder.state.value)
        assertEquals(emptyList(), models.loads)
        holder.open("large", evenIfTooLarge = true)
        holder.settle()
        assertIs<ModelState.Ready>(holder.state.value)
    }

    @Test
    fun `a refusal that was read is forgotten`() = onOneThread {
        val holder = holder()
        holder.open("large")
        holder.settle()
        holder.dismiss()
        assertEquals(ModelState.None, holder.state.value)
    }

    @Test
    fun `an error in words ends the load, and is no crash`() = onOneThread {
        val holder = holder()
        holder.open("broken")
        holder.settle()
        val problem = Notice.Problem("model.pte has other bytes.\nImport it again.")
        assertEquals(ModelState.Failed("broken", problem), holder.state.value)
        assertFalse(guardFile.exists())
    }

    @Test
    fun `a device without the native library is told so`() = onOneThread {
        val holder = holder()
        holder.open("foreign")
        holder.settle()
        assertEquals(ModelState.Failed("foreign", Notice.NoLibrary("tinyqmoe_jni")), holder.state.value)
    }

    @Test
    fun `never are two models in memory, however fast one is chosen after the other`() = onOneThread {
        val holder = holder()
        holder.open("small")
        holder.settle()
        models.stored += "other"
        holder.open("other")
        holder.open("small")
        holder.open("other")
        holder.settle()
        assertEquals("other", holder.state.value.id)
        assertIs<ModelState.Ready>(holder.state.value)
        assertEquals(1, models.inMemory)
        assertEquals(1, models.mostInMemory)
    }

    @Test
    fun `the model that was chosen last wins over one that is loading`() = onOneThread {
        val holder = holder()
        models.loadGate = CompletableDeferred()
        holder.open("small")
        until { models.loads.isNotEmpty() }
        holder.open("other")
        checkNotNull(models.loadGate).complete(Unit)
        holder.settle()
        assertEquals("other", holder.state.value.id)
        assertEquals(1, models.mostInMemory)
    }

    @Test
    fun `a model is unloaded in the background and comes back`() = onOneThread {
        val holder = holder()
        holder.open("small")
        holder.settle()
        holder.unload()
        holder.settle()
        assertEquals(ModelState.Unloaded("small"), holder.state.value)
        assertEquals(0, models.inMemory)
        holder.reload()
        holder.settle()
        assertIs<ModelState.Ready>(holder.state.value)
        assertEquals(listOf<PolicyEvent>(PolicyEvent.Loaded, PolicyEvent.Unloaded, PolicyEvent.Loaded), events)
    }

    @Test
    fun `a model that was unloaded while it loaded is not kept`() = onOneThread {
        val holder = holder()
        models.loadGate = CompletableDeferred()
        holder.open("small")
        until { models.loads.isNotEmpty() }
        holder.unload()
        checkNotNull(models.loadGate).complete(Unit)
        holder.settle()
        assertEquals(ModelState.Unloaded("small"), holder.state.value)
        assertEquals(0, models.inMemory)
    }

    @Test
    fun `close gives the memory back before it returns`() = onOneThread {
        val holder = holder()
        holder.open("small")
        holder.settle()
        holder.close()
        assertEquals(0, models.inMemory)
        assertEquals(ModelState.None, holder.state.value)
    }
}
