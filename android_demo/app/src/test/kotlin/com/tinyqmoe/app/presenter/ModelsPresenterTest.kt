package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.BundleSource
import com.tinyqmoe.core.ImportProgress
import com.tinyqmoe.core.PartialImport
import com.tinyqmoe.core.PickedSource
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.awaitCancellation
import org.junit.Test
import java.io.IOException
import kotlin.test.assertEquals
import kotlin.test.assertIs
import kotlin.test.assertTrue

class ModelsPresenterTest {
    private val models = FakeModels()
    private val sources = mutableListOf<BundleSource>()

    private suspend fun CoroutineScope.presenter(
        run: suspend (BundleSource, (ImportProgress) -> Unit) -> Unit = { source, _ -> models.stored += source.id },
    ): ModelsPresenter {
        val importer = Importer { source, progress ->
            sources += source
            run(source, progress)
        }
        return ModelsPresenter(models, loadedHolder(models), importer, this)
    }

    private fun ModelsPresenter.row(id: String) = state.value.rows.firstOrNull { it.id == id }

    @Test
    fun `the list says the memory of each model, and what is damaged`() = onOneThread {
        val presenter = presenter()
        presenter.refresh()
        until { presenter.state.value.rows.isNotEmpty() }
        assertEquals(ModelStatus.Stored(Forecast(false, "needs memory")), presenter.row("large")?.status)
        assertEquals(ModelStatus.Damaged("Its weights are damaged."), presenter.row("broken")?.status)
    }

    @Test
    fun `a download shows its progress in a row of its own`() = onOneThread {
        val presenter = presenter { _, progress ->
            progress(ImportProgress(5, 10, "model.pte"))
            awaitCancellation()
        }
        presenter.download(" https://models.example/new/manifest.json ")
        until { presenter.row("new")?.status == ModelStatus.Running(Transfer(5, 10)) }
        assertEquals("https://models.example/new", sources.single().address)
    }

    @Test
    fun `a download that is complete is a model`() = onOneThread {
        val presenter = presenter()
        presenter.download("https://models.example/new")
        until { presenter.row("new")?.status is ModelStatus.Stored }
    }

    @Test
    fun `what is no web address is refused`() = onOneThread {
        val presenter = presenter()
        for (address in listOf("", "new", "ftp://models.example/new", "https://", "https://a b")) {
            presenter.dismissNotice()
            presenter.download(address)
            assertEquals(Notice.BadAddress, presenter.state.value.notice, address)
        }
    }

    @Test
    fun `a paused download is resumed from its address, picked files have to be picked again`() = onOneThread {
        val presenter = presenter { _, _ -> awaitCancellation() }
        models.partial += PartialImport("web", "https://models.example/web", 3, 10)
        models.partial += PartialImport("picked", "content://documents/tree/1", 3, null)
        presenter.refresh()
        until { presenter.row("picked") != null }
        assertEquals(ModelStatus.Paused(Transfer(3, 10), canResume = true), presenter.row("web")?.status)
        assertEquals(ModelStatus.Paused(Transfer(3, 0), canResume = false), presenter.row("picked")?.status)
        presenter.resume("web")
        until { presenter.row("web")?.status is ModelStatus.Running }
        assertEquals("https://models.example/web", sources.single().address)
        presenter.resume("picked")
        until { presenter.state.value.notice == Notice.PickAgain }
        presenter.pause("web")
        until { presenter.row("web")?.status is ModelStatus.Paused }
    }

    @Test
    fun `a download that fails says why`() = onOneThread {
        val presenter = presenter { _, _ -> throw damaged("model.pte has another SHA-256.") }
        presenter.import(PickedSource("folder", "new") { null })
        until { presenter.state.value.notice != null }
        assertIs<Notice.Problem>(presenter.state.value.notice)
    }

    @Test
    fun `a picked folder that may not be read says so`() = onOneThread {
        val presenter = presenter()
        presenter.importPicked { throw IOException("choose it again") }
        until { presenter.state.value.notice == Notice.Problem("choose it again") }
        presenter.importPicked { PickedSource("folder", "new") { null } }
        until { presenter.row("new")?.status is ModelStatus.Stored }
    }

    @Test
    fun `the model that is loaded is closed before it is deleted`() = onOneThread {
        val presenter = presenter()
        presenter.delete("small")
        until { "small" !in models.stored }
        assertEquals(0, models.inMemory)
    }

    @Test
    fun `a download is stopped before it is deleted`() = onOneThread {
        val presenter = presenter { _, _ -> awaitCancellation() }
        presenter.import(PickedSource("folder", "new") { null })
        until { presenter.row("new")?.status is ModelStatus.Running }
        presenter.delete("new")
        until { presenter.row("new") == null }
        assertTrue(presenter.transfers.running.value.isEmpty())
    }
}
