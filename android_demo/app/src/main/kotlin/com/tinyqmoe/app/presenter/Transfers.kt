package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.BundleSource
import com.tinyqmoe.core.ImportProgress
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update

/** Bytes of a bundle that came, and that will; 0 where the manifest did not come yet. */
data class Transfer(val bytesDone: Long, val bytesTotal: Long)

/** Imports one bundle: BundleImport of the core. Cancel it to pause; what came is kept. */
fun interface Importer {
    suspend fun run(source: BundleSource, progress: (ImportProgress) -> Unit)
}

/**
 * The imports that run, by the id of the bundle. All calls come from the thread of [scope].
 *
 * @param ended is told when one ended: null where the bundle is complete or was paused, else what went wrong.
 */
class Transfers(private val importer: Importer, private val scope: CoroutineScope, private val ended: (Notice?) -> Unit) {
    private val current = MutableStateFlow<Map<String, Transfer>>(emptyMap())
    private val jobs = mutableMapOf<String, Job>()

    /** Those that run now. */
    val running: StateFlow<Map<String, Transfer>> = current.asStateFlow()

    /** Begins an import, or goes on with one. One of the same bundle that runs already goes on alone. */
    fun start(source: BundleSource) {
        val id = source.id
        if (id in jobs) return
        current.update { it + (id to Transfer(0, 0)) }
        jobs[id] = scope.launchSurely { run(source) }
    }

    /** Pauses an import; what came is kept. */
    fun pause(id: String) {
        jobs[id]?.cancel()
    }

    fun pauseAll() = jobs.keys.toList().forEach(::pause)

    /** Pauses an import, and returns when its files are not written any more. */
    suspend fun stop(id: String) {
        jobs[id]?.run {
            cancel()
            join()
        }
    }

    private suspend fun run(source: BundleSource) {
        var problem: Notice? = null
        try {
            importer.run(source) { show(source.id, Transfer(it.bytesDone, it.bytesTotal)) }
        } catch (paused: CancellationException) {
            throw paused
        } catch (error: Throwable) {
            problem = noticeOf(error)
        } finally {
            jobs -= source.id
            current.update { it - source.id }
            ended(problem)
        }
    }

    /** May come from any thread, and after the end. */
    private fun show(id: String, transfer: Transfer) = current.update { if (id in it) it + (id to transfer) else it }
}
