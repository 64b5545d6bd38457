package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.CheckReport
import kotlinx.coroutines.awaitCancellation
import org.junit.Test
import kotlin.test.assertEquals
import kotlin.test.assertIs

class CheckPresenterTest {
    private val models = FakeModels()
    private val report = CheckReport("small", "here", emptyList(), "")

    @Test
    fun `the model of the chat is closed while another is checked, and comes back`() = onOneThread {
        val holder = loadedHolder(models)
        val check = CheckPresenter(models, holder, this)
        var inMemory = -1
        models.checking = { progress ->
            inMemory = models.inMemory
            progress(1, 2)
            report
        }
        check.start("small")
        assertEquals(CheckState.Running(0, 0), check.state.value)
        check.settle()
        holder.settle()
        assertEquals(0, inMemory)
        assertEquals(CheckState.Done(report), check.state.value)
        assertIs<ModelState.Ready>(holder.state.value)
        check.select("small")
        assertIs<CheckState.Done>(check.state.value)
        check.select("other")
        assertEquals(CheckState.Idle, check.state.value)
    }

    @Test
    fun `a check can be cancelled, and a second tap starts no second one`() = onOneThread {
        val holder = loadedHolder(models)
        val check = CheckPresenter(models, holder, this)
        var n = 0
        models.checking = {
            n++
            awaitCancellation()
        }
        check.start("small")
        check.start("small")
        until { n > 0 }
        check.cancel()
        check.settle()
        holder.settle()
        assertEquals(1, n)
        assertEquals(CheckState.Idle, check.state.value)
        assertIs<ModelState.Ready>(holder.state.value)
    }

    @Test
    fun `a check that is cancelled at once leaves nothing behind`() = onOneThread {
        val check = CheckPresenter(models, loadedHolder(models), this)
        check.start("small")
        check.cancel()
        check.settle()
        assertEquals(CheckState.Idle, check.state.value)
    }

    @Test
    fun `a file that is damaged is told in words`() = onOneThread {
        val check = CheckPresenter(models, loadedHolder(models), this)
        models.checking = { throw damaged("model.pte has another SHA-256.") }
        check.start("small")
        check.settle()
        assertEquals(CheckState.Failed(Notice.Problem("model.pte has another SHA-256.\nImport it again.")), check.state.value)
    }
}
