package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.BundleError
import com.tinyqmoe.core.CheckReport
import com.tinyqmoe.core.Ending
import com.tinyqmoe.core.LoadGuard
import com.tinyqmoe.core.Message
import com.tinyqmoe.core.PartialImport
import com.tinyqmoe.core.Reply
import com.tinyqmoe.core.ReplyLimits
import com.tinyqmoe.core.Residency
import com.tinyqmoe.core.ResidencyState
import com.tinyqmoe.core.Sampling
import com.tinyqmoe.core.SessionStats
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.cancelChildren
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.FlowCollector
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.job
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import java.io.File

/** Runs a test on one thread, as Android's main thread is one; what it started ends with it. */
internal fun onOneThread(body: suspend CoroutineScope.() -> Unit) =
    runBlocking {
        withTimeout(120_000) {
            coroutineScope {
                body()
                coroutineContext.job.cancelChildren()
            }
        }
    }

/** Waits until something holds; the test's timeout ends it. */
internal suspend fun until(holds: () -> Boolean) {
    while (!holds()) delay(1)
}

internal fun temporaryFolder(): File = File.createTempFile("tinyqmoe", "").apply { delete() }.also { it.mkdirs() }

internal fun damaged(words: String) = BundleError(BundleError.Kind.DAMAGED, words, "Import it again.")

/** Models that answer by [script]. [inMemory] counts those that are loaded, and [mostInMemory] the most there ever were. */
internal class FakeModels(private val guardFile: File? = null) : Models {
    val stored = mutableListOf("small", "large", "broken", "foreign")
    val partial = mutableListOf<PartialImport>()
    val loads = mutableListOf<String>()
    val asked = mutableListOf<Asked>()
    var script: suspend FlowCollector<Reply>.() -> Unit = { answer("fine") }
    var loadGate: CompletableDeferred<Unit>? = null
    var hasSystem = true
    var checking: suspend (progress: (Int, Int) -> Unit) -> CheckReport = { CheckReport("small", "here", emptyList(), "") }
    var guardWhileLoading: String? = null
    var pauseMillis = 0L
    var inMemory = 0
    var mostInMemory = 0

    class Asked(val messages: List<Message>, val sampling: Sampling, val limits: ReplyLimits)

    override suspend fun list() = stored.map { Model(it, it, 7, if (it == "broken") "Its weights are damaged." else null) }

    override suspend fun partial() = partial

    override suspend fun forecast(id: String) = Forecast(id != "large", "needs memory")

    override suspend fun delete(id: String) {
        stored -= id
    }

    override suspend fun load(id: String): LoadedModel {
        loads += id
        guardWhileLoading = guardFile?.takeIf { it.exists() }?.readText()
        loadGate?.await()
        if (id == "broken") throw damaged("model.pte has other bytes.")
        if (id == "foreign") throw UnsatisfiedLinkError("tinyqmoe_jni")
        mostInMemory = maxOf(mostInMemory, ++inMemory)
        return FakeModel(this)
    }

    override suspend fun check(id: String, progress: (done: Int, total: Int) -> Unit): CheckReport = checking(progress)
}

private class FakeModel(private val models: FakeModels) : LoadedModel {
    override val chatProblem: String? = null
    override val hasSystem: Boolean get() = models.hasSystem
    override val stats = MutableStateFlow(SessionStats())
    override var pauseMillis: Long by models::pauseMillis

    override fun reply(messages: List<Message>, sampling: Sampling, limits: ReplyLimits): Flow<Reply> {
        models.asked += FakeModels.Asked(messages, sampling, limits)
        return flow { models.script(this) }
    }

    override suspend fun close() {
        models.inMemory--
    }
}

internal suspend fun FlowCollector<Reply>.answer(text: String, ending: Ending = Ending.END) {
    emit(Reply.Text(text))
    emit(Reply.Done(ending, SessionStats(answerTokens = 1)))
}

/** Some text, and then nothing until the answer is stopped. */
internal suspend fun FlowCollector<Reply>.hang(text: String) {
    emit(Reply.Text(text))
    awaitCancellation()
}

/** A holder whose model "small" is loaded. */
internal suspend fun CoroutineScope.loadedHolder(models: FakeModels): ModelHolder {
    val holder = ModelHolder(models, LoadGuard(File(temporaryFolder(), "loading")), this) {}
    holder.open("small")
    holder.settle()
    return holder
}

/** Notes what it is asked for. */
internal class FakeResidency : Residency {
    val calls = mutableListOf<String>()

    override fun setBudget(bytes: Long) {
        calls += "budget $bytes"
    }

    override fun trim(bytes: Long): Long = bytes.also { calls += "trim $bytes" }

    override fun setCacheFolder(folder: File?) {
        calls += "folder $folder"
    }

    override fun state() = ResidencyState(0, 0, 0, 0)
}
