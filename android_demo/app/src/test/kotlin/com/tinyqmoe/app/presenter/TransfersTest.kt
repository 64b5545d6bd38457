package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.BundleSource
import com.tinyqmoe.core.ImportProgress
import com.tinyqmoe.core.PickedSource
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.awaitCancellation
import org.junit.Test
import kotlin.test.assertEquals

class TransfersTest {
    private val ended = mutableListOf<Notice?>()
    private var runs = 0

    private fun source(id: String): BundleSource = PickedSource("folder", id) { null }

    private fun CoroutineScope.transfers(run: suspend ((ImportProgress) -> Unit) -> Unit) =
        Transfers({ _, progress ->
            runs++
            run(progress)
        }, this) { ended += it }

    @Test
    fun `an import shows how far it is, and goes when it is complete`() = onOneThread {
        val end = CompletableDeferred<Unit>()
        val transfers = transfers { progress ->
            progress(ImportProgress(3, 10, "model.pte"))
            end.await()
        }
        transfers.start(source("a"))
        until { transfers.running.value["a"]?.bytesDone == 3L }
        assertEquals(Transfer(3, 10), transfers.running.value["a"])
        end.complete(Unit)
        until { ended.isNotEmpty() }
        assertEquals(emptyMap(), transfers.running.value)
        assertEquals(listOf<Notice?>(null), ended)
    }

    @Test
    fun `a second tap starts no second import`() = onOneThread {
        val transfers = transfers { awaitCancellation() }
        transfers.start(source("a"))
        transfers.start(source("a"))
        until { runs > 0 }
        transfers.stop("a")
        assertEquals(1, runs)
    }

    @Test
    fun `an import that is paused at once can be resumed`() = onOneThread {
        val transfers = transfers { awaitCancellation() }
        transfers.start(source("a"))
        transfers.pause("a")
        until { ended.isNotEmpty() }
        assertEquals(emptyMap(), transfers.running.value)
        transfers.start(source("a"))
        until { runs > 0 }
        transfers.pauseAll()
        until { ended.size == 2 }
        assertEquals(listOf<Notice?>(null, null), ended)
    }

    @Test
    fun `what went wrong is told`() = onOneThread {
        val transfers = transfers { throw damaged("model.pte has another SHA-256.") }
        transfers.start(source("a"))
        until { ended.isNotEmpty() }
        assertEquals(listOf<Notice?>(Notice.Problem("model.pte has another SHA-256.\nImport it again.")), ended)
    }
}
