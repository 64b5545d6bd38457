package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.BundleError
import com.tinyqmoe.core.BundleSource
import com.tinyqmoe.core.HttpSource
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch
import java.net.URI
import java.net.URISyntaxException

/** What a model of the list is. */
sealed interface ModelStatus {
    /** Complete. [forecast] is the memory it will take. */
    data class Stored(val forecast: Forecast) : ModelStatus

    /** Complete once, and now not: [words] say what is wrong. */
    data class Damaged(val words: String) : ModelStatus

    data class Running(val transfer: Transfer) : ModelStatus

    /** [canResume]: from an address; files that were picked have to be picked again. */
    data class Paused(val transfer: Transfer, val canResume: Boolean) : ModelStatus
}

/** A row of the list. */
data class ModelRow(val id: String, val name: String, val bytes: Long, val status: ModelStatus)

data class ModelsState(val rows: List<ModelRow> = emptyList(), val notice: Notice? = null)

/** The list of models: download, pause, resume, import, delete. All calls come from the thread of [scope]. */
class ModelsPresenter(
    private val models: Models,
    private val holder: ModelHolder,
    importer: Importer,
    private val scope: CoroutineScope,
) {
    private val current = MutableStateFlow(ModelsState())
    private var reading: Job? = null

    val transfers = Transfers(importer, scope, ::ended)
    val state: StateFlow<ModelsState> = current.asStateFlow()

    init {
        scope.launch { transfers.running.collect { showTransfers(it) } }
    }

    /** Reads the list from the storage again. */
    fun refresh() {
        reading?.cancel()
        reading = scope.launch { read() }
    }

    /** Downloads the bundle at a web address, or goes on with it. */
    fun download(address: String) {
        val folder = address.trim().removeSuffix("manifest.json").trimEnd('/')
        if (isWeb(folder)) import(HttpSource(folder)) else notice(Notice.BadAddress)
    }

    /** Imports a bundle, or goes on with it. */
    fun import(source: BundleSource) {
        notice(null)
        transfers.start(source)
    }

    /** Imports what the user picked; [source] asks another app for it, which takes its time and may be refused. */
    fun importPicked(source: suspend () -> BundleSource) {
        scope.launch { attempt { import(source()) } }
    }

    fun pause(id: String) = transfers.pause(id)

    fun resume(id: String) {
        scope.launch {
            val source = models.partial().firstOrNull { it.id == id }?.source ?: return@launch
            if (isWeb(source)) import(HttpSource(source, id)) else notice(Notice.PickAgain)
        }
    }

    /** Deletes a model, or what came of one; closes it first. */
    fun delete(id: String) {
        scope.launch {
            transfers.stop(id)
            if (holder.state.value.id == id) holder.close()
            attempt { models.delete(id) }
            refresh()
        }
    }

    fun dismissNotice() = notice(null)

    private fun notice(notice: Notice?) = current.update { it.copy(notice = notice) }

    private fun ended(problem: Notice?) {
        if (problem != null) notice(problem)
        refresh()
    }

    private suspend fun read() =
        attempt {
            val complete = models.list().map { ModelRow(it.id, it.name, it.bytes, statusOf(it)) }
            val partial =
                models.partial().map {
                    val transfer = Transfer(it.bytesDone, it.bytesTotal ?: 0)
                    ModelRow(it.id, it.id, it.bytesDone, ModelStatus.Paused(transfer, isWeb(it.source)))
                }
            current.update { it.copy(rows = complete + partial) }
            showTransfers(transfers.running.value)
        }

    private suspend fun statusOf(model: Model): ModelStatus {
        model.problem?.let { return ModelStatus.Damaged(it) }
        return try {
            ModelStatus.Stored(models.forecast(model.id))
        } catch (error: BundleError) {
            ModelStatus.Damaged(error.words)
        }
    }

    private fun showTransfers(running: Map<String, Transfer>) =
        current.update { state ->
            val known = state.rows.map { row ->
                val transfer = running[row.id]
                if (transfer == null) row else row.copy(bytes = transfer.bytesDone, status = ModelStatus.Running(transfer))
            }
            val ids = known.map { it.id }.toSet()
            val new = running.filterKeys { it !in ids }.map { (id, t) -> ModelRow(id, id, t.bytesDone, ModelStatus.Running(t)) }
            state.copy(rows = known + new)
        }

    private suspend fun attempt(step: suspend () -> Unit) {
        try {
            step()
        } catch (error: Exception) {
            notice(noticeOf(error))
        }
    }
}

/** Whether an address is one that a bundle can be downloaded from. */
private fun isWeb(address: String): Boolean =
    try {
        val uri = URI(address)
        uri.scheme in setOf("https", "http") && !uri.host.isNullOrEmpty()
    } catch (_: URISyntaxException) {
        false
    }
