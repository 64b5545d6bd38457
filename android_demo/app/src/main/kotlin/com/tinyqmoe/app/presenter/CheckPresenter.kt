package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.CheckReport
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow

sealed interface CheckState {
    data object Idle : CheckState

    /** Tokens that were run, and that will be; 0 while the files are read. */
    data class Running(val done: Int, val total: Int) : CheckState

    data class Done(val report: CheckReport) : CheckState

    data class Failed(val notice: Notice) : CheckState
}

/**
 * "Check this model". The model of the chat is closed meanwhile, so that there are never two in memory, and loaded again
 * after it. All calls come from the thread of [scope].
 */
class CheckPresenter(private val models: Models, private val holder: ModelHolder, private val scope: CoroutineScope) {
    private val current = MutableStateFlow<CheckState>(CheckState.Idle)
    private var job: Job? = null
    private var checked: String? = null
    val state: StateFlow<CheckState> = current.asStateFlow()

    /** Says which model the screen is for: what was found of another one goes, unless its check still runs. */
    fun select(id: String) {
        if (job?.isActive != true && checked != id) current.value = CheckState.Idle
    }

    /** Begins a check; one that runs goes on. */
    fun start(id: String) {
        if (job?.isActive == true) return
        checked = id
        current.value = CheckState.Running(0, 0)
        job = scope.launchSurely { run(id) }
    }

    fun cancel() {
        job?.cancel()
    }

    /** Waits for the end of a check. */
    suspend fun settle() {
        job?.join()
    }

    private suspend fun run(id: String) {
        val loaded = holder.state.value.id
        try {
            holder.close()
            currentCoroutineContext().ensureActive()
            val report = models.check(id) { done, total -> current.value = CheckState.Running(done, total) }
            current.value = CheckState.Done(report)
        } catch (cancelled: CancellationException) {
            current.value = CheckState.Idle
            throw cancelled
        } catch (error: Throwable) {
            current.value = CheckState.Failed(noticeOf(error))
        } finally {
            if (loaded != null) holder.open(loaded)
        }
    }
}
