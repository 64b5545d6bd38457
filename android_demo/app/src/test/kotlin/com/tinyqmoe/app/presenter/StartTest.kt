package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.LoadGuard
import com.tinyqmoe.core.SettingsFile
import kotlinx.coroutines.CoroutineScope
import org.junit.Test
import java.io.File
import kotlin.test.assertEquals
import kotlin.test.assertIs
import kotlin.test.assertNull

class StartTest {
    private val folder = temporaryFolder()
    private val guardFile = File(folder, "loading")
    private val settings = SettingsPresenter(SettingsFile(File(folder, "settings.json")))
    private val models = FakeModels()

    private fun CoroutineScope.start(): Pair<Start, ModelHolder> {
        val guard = LoadGuard(guardFile)
        val holder = ModelHolder(models, guard, this) {}
        return Start(guard, settings, holder, this) to holder
    }

    @Test
    fun `the last model is loaded by itself`() = onOneThread {
        settings.rememberModel("small")
        val (start, holder) = start()
        assertNull(start.begin { null })
        holder.settle()
        assertIs<ModelState.Ready>(holder.state.value)
    }

    @Test
    fun `a model whose load ended the app is not loaded again, and the user is told`() = onOneThread {
        settings.rememberModel("small")
        LoadGuard(guardFile).begin("small")
        val (start, holder) = start()
        assertEquals(Notice.EndedWhileLoading("small", "for memory"), start.begin { "for memory" })
        holder.settle()
        assertEquals(ModelState.None, holder.state.value)
        assertEquals(emptyList(), models.loads)
        val (again, _) = start()
        assertNull(again.begin { null })
        assertEquals(emptyList(), models.loads)
    }

    @Test
    fun `a model that was loaded is remembered`() = onOneThread {
        val (start, holder) = start()
        assertNull(start.begin { null })
        holder.open("small")
        until { settings.state.value.lastBundle == "small" }
    }
}
