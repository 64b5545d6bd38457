package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.Bundle
import com.tinyqmoe.core.BundleStore
import com.tinyqmoe.core.CheckReport
import com.tinyqmoe.core.EngineOpener
import com.tinyqmoe.core.EngineOptions
import com.tinyqmoe.core.MemoryForecast
import com.tinyqmoe.core.Message
import com.tinyqmoe.core.ModelCheck
import com.tinyqmoe.core.PartialImport
import com.tinyqmoe.core.Reply
import com.tinyqmoe.core.ReplyLimits
import com.tinyqmoe.core.Sampling
import com.tinyqmoe.core.Session
import com.tinyqmoe.core.SessionStats
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.withContext

/** A model of this device. [bytes] on the storage; [problem] says what is wrong with it, or is null. */
data class Model(val id: String, val name: String, val bytes: Long, val problem: String?)

/** The memory that a model will take: [words] for the user; [fits] is whether the app may hold it. */
data class Forecast(val fits: Boolean, val words: String)

/** A loaded model. */
interface LoadedModel {
    /** Why the model has no chat format, or null where it has one. */
    val chatProblem: String?

    /** Whether a conversation can have a system prompt. */
    val hasSystem: Boolean

    /** Figures of the last answer, while it comes and after it. */
    val stats: StateFlow<SessionStats>

    /** Milliseconds to wait between tokens, on a device that is hot. */
    var pauseMillis: Long

    /** See [Session.reply]. */
    fun reply(messages: List<Message>, sampling: Sampling, limits: ReplyLimits): Flow<Reply>

    suspend fun close()
}

/** The models of this device, as the presenters need them. Calls throw BundleError. */
interface Models {
    suspend fun list(): List<Model>

    suspend fun partial(): List<PartialImport>

    suspend fun forecast(id: String): Forecast

    suspend fun delete(id: String)

    suspend fun load(id: String): LoadedModel

    /** "Check this model": [progress] is told the tokens that were run and those that will be. */
    suspend fun check(id: String, progress: (done: Int, total: Int) -> Unit): CheckReport
}

/**
 * The models of a [store], run by [opener].
 *
 * @param limitBytes memory that the app may hold, asked anew before each load.
 * @param device a name of this device, for reports.
 */
class StoredModels(
    private val store: BundleStore,
    private val opener: EngineOpener,
    private val limitBytes: () -> Long,
    private val device: String,
) : Models {
    override suspend fun list(): List<Model> =
        withContext(Dispatchers.IO) {
            store.list().map { Model(it.id, it.bundle?.name ?: it.id, it.bytes, it.problem?.words) }
        }

    override suspend fun partial(): List<PartialImport> = withContext(Dispatchers.IO) { store.partial() }

    override suspend fun forecast(id: String): Forecast =
        withContext(Dispatchers.IO) {
            val forecast = MemoryForecast(bundle(id).manifest, limitBytes())
            Forecast(forecast.fits, forecast.words)
        }

    override suspend fun delete(id: String) = withContext(Dispatchers.IO) { store.delete(id) }

    override suspend fun load(id: String): LoadedModel =
        withContext(Dispatchers.IO) { LoadedSession(Session.open(bundle(id), opener)) }

    override suspend fun check(id: String, progress: (done: Int, total: Int) -> Unit): CheckReport =
        withContext(Dispatchers.IO) {
            val bundle = bundle(id)
            bundle.verify()
            opener.open(bundle, EngineOptions()).use { ModelCheck(bundle, it, device).run(progress) }
        }

    private fun bundle(id: String): Bundle = Bundle.open(store.folderOf(id))
}

private class LoadedSession(private val session: Session) : LoadedModel {
    private val manifest = session.bundle.manifest
    override val chatProblem: String? = if (manifest.chat == null) manifest.chatProblem else null
    override val hasSystem: Boolean = manifest.chat?.hasSystem ?: false
    override val stats: StateFlow<SessionStats> get() = session.stats

    override var pauseMillis: Long by session::pauseMillis

    override fun reply(messages: List<Message>, sampling: Sampling, limits: ReplyLimits): Flow<Reply> =
        session.reply(messages, sampling, limits)

    override suspend fun close() = session.close()
}
