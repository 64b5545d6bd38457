package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.LoadGuard
import com.tinyqmoe.core.Reply
import com.tinyqmoe.core.ReplyLimits
import com.tinyqmoe.core.Sampling
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import org.junit.Test
import java.io.File
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertTrue

class GuardedModelTest {
    private val file = File(temporaryFolder(), "loading")
    private val models = FakeModels()
    private val seen = mutableListOf<Boolean>()

    private suspend fun model() = GuardedModel(models.load("small"), "small", LoadGuard(file))

    private fun LoadedModel.ask() = reply(emptyList(), Sampling(), ReplyLimits())

    @Test
    fun `until the first text, a model counts as one that may end the app`() = onOneThread {
        models.script = {
            seen += file.exists()
            emit(Reply.Text("a"))
            seen += file.exists()
            emit(Reply.Text("b"))
        }
        val model = model()
        model.ask().toList()
        model.ask().toList()
        assertEquals(listOf(true, false, false, false), seen)
    }

    @Test
    fun `an answer that is stopped or fails before its first text is no crash`() = onOneThread {
        models.script = { kotlinx.coroutines.awaitCancellation() }
        val model = model()
        val job = launch { model.ask().toList() }
        until { file.exists() }
        job.cancel()
        job.join()
        assertFalse(file.exists())
        models.script = { throw damaged("Its codes are damaged.") }
        assertTrue(runCatching { model.ask().toList() }.isFailure)
        assertFalse(file.exists())
    }
}
