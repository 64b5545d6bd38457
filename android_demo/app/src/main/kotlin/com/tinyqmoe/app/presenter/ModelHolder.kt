package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.LoadGuard
import com.tinyqmoe.core.PolicyEvent
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.launch
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import kotlinx.coroutines.withContext

/** The model of the chat. [id] is its name in the store. */
sealed interface ModelState {
    val id: String?

    data object None : ModelState {
        override val id: String? = null
    }

    data class Loading(override val id: String) : ModelState

    data class Ready(override val id: String, val model: LoadedModel) : ModelState

    /** Unloaded to give its memory back; [ModelHolder.reload] brings it again. */
    data class Unloaded(override val id: String) : ModelState

    /** It would not fit into memory; [words] say why. The user may try all the same. */
    data class Refused(override val id: String, val words: String) : ModelState

    data class Failed(override val id: String, val notice: Notice) : ModelState
}

/**
 * Loads and unloads the model of the chat: one at a time, in the order that it was asked for. A second tap on the model
 * that is loading or loaded does nothing. All calls come from the thread of [scope].
 *
 * @param tell gets Loaded and Unloaded, for the memory policy.
 */
class ModelHolder(
    private val models: Models,
    private val guard: LoadGuard,
    private val scope: CoroutineScope,
    private val tell: (PolicyEvent) -> Unit,
) {
    private val current = MutableStateFlow<ModelState>(ModelState.None)
    private val turn = Mutex()

    /** What is in memory, which may differ from what is wanted; touched only by who has the turn. */
    private var held: LoadedModel? = null
    private var work: Job? = null

    val state: StateFlow<ModelState> = current.asStateFlow()

    /** Milliseconds that the model waits between tokens, on a device that is hot; for the next model too. */
    var pauseMillis = 0L
        set(value) {
            field = value
            held?.pauseMillis = value
        }

    /** Loads a model. [evenIfTooLarge] skips the forecast, after the user read it. */
    fun open(id: String, evenIfTooLarge: Boolean = false) {
        val now = current.value
        if (now.id == id && (now is ModelState.Loading || now is ModelState.Ready)) return
        val wanted = ModelState.Loading(id)
        current.value = wanted
        work = scope.launch { turn.withLock { if (current.value === wanted) load(wanted, evenIfTooLarge) } }
    }

    /** Gives the memory of the model back, for as long as the app is not seen. */
    fun unload() {
        val now = current.value
        if (now !is ModelState.Ready && now !is ModelState.Loading) return
        current.value = ModelState.Unloaded(checkNotNull(now.id))
        work = scope.launch { turn.withLock { if (current.value is ModelState.Unloaded) release() } }
    }

    /** Loads the model again that [unload] closed. */
    fun reload() {
        (current.value as? ModelState.Unloaded)?.let { open(it.id) }
    }

    /** Forgets a model that was refused or failed: the user read why. */
    fun dismiss() {
        val now = current.value
        if (now is ModelState.Refused || now is ModelState.Failed) current.value = ModelState.None
    }

    /** Closes the model, because it is deleted or checked. Returns when its memory is free. */
    suspend fun close() {
        current.value = ModelState.None
        turn.withLock { release() }
    }

    /** Waits for what was asked for last. */
    suspend fun settle() {
        work?.join()
    }

    private suspend fun release() {
        val model = held ?: return
        held = null
        withContext(NonCancellable) { model.close() }
        tell(PolicyEvent.Unloaded)
    }

    private suspend fun load(wanted: ModelState.Loading, evenIfTooLarge: Boolean) {
        release()
        val next = attempt(wanted.id, evenIfTooLarge)
        if (next is ModelState.Ready) {
            held = next.model.also { it.pauseMillis = pauseMillis }
            tell(PolicyEvent.Loaded)
        }
        if (current.value === wanted) current.value = next else release()
    }

    private suspend fun attempt(id: String, evenIfTooLarge: Boolean): ModelState {
        try {
            val forecast = models.forecast(id)
            if (!forecast.fits && !evenIfTooLarge) return ModelState.Refused(id, forecast.words)
            guard.begin(id)
            return ModelState.Ready(id, GuardedModel(models.load(id), id, guard))
        } catch (error: Throwable) {
            return ModelState.Failed(id, noticeOf(error))
        } finally {
            guard.finished()
        }
    }
}
