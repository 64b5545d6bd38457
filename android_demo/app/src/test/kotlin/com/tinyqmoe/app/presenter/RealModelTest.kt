package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.BundleImport
import com.tinyqmoe.core.BundleStore
import com.tinyqmoe.core.Conversations
import com.tinyqmoe.core.LoadGuard
import com.tinyqmoe.core.PickedSource
import com.tinyqmoe.core.Sampling
import com.tinyqmoe.core.Settings
import com.tinyqmoe.engine.NativeSession
import org.junit.Assume.assumeTrue
import org.junit.Test
import java.io.File
import kotlin.test.assertEquals
import kotlin.test.assertIs
import kotlin.test.assertNotNull
import kotlin.test.assertTrue

/**
 * All of the app but its views, with the real core: a bundle is imported, loaded, asked, unloaded, checked and deleted.
 * The environment names the bundle (TINYQMOE_BUNDLE); the native library is on java.library.path.
 */
class RealModelTest {
    private val folder = temporaryFolder()
    private val store = BundleStore(File(folder, "models"))
    private val settings = Settings(sampling = Sampling(temperature = 0.0), maxNewTokens = 12)

    @Test
    fun `a bundle from the first tap to the last`() = onOneThread {
        val bundle = System.getenv("TINYQMOE_BUNDLE")
        assumeTrue("TINYQMOE_BUNDLE names no bundle", bundle != null)
        val models = StoredModels(store, NativeSession, { Long.MAX_VALUE }, "this computer")
        val holder = ModelHolder(models, LoadGuard(File(folder, "loading")), this) {}
        val importer = Importer { source, progress -> BundleImport(source, store).run(progress) }
        val list = ModelsPresenter(models, holder, importer, this)
        list.import(PickedSource("folder", "real") { File(bundle, it).takeIf(File::isFile)?.inputStream() })
        until { list.state.value.rows.any { it.status is ModelStatus.Stored } }

        holder.open("real")
        holder.settle()
        assertIs<ModelState.Ready>(holder.state.value)
        val chat = ChatPresenter(Conversations(File(folder, "conversations")), holder, { settings }, this) {}
        assertTrue(chat.send("Once upon a time"))
        chat.settle()
        val answer = chat.state.value.messages.last().content
        assertTrue(answer.isNotEmpty())
        assertNotNull(chat.state.value.stats?.firstTokenMillis)

        holder.unload()
        holder.reload()
        holder.settle()
        assertTrue(chat.regenerate())
        chat.settle()
        assertEquals(answer, chat.state.value.messages.last().content)

        val check = CheckPresenter(models, holder, this)
        check.start("real")
        check.settle()
        val report = assertIs<CheckState.Done>(check.state.value).report
        assertTrue(report.passed && report.sameBits, report.text())
        list.delete("real")
        until { store.list().isEmpty() }
    }
}
