package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.LoadGuard
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.flow.filterIsInstance
import kotlinx.coroutines.launch

/** What is loaded when the app starts: the last model, unless its load ended the app. */
class Start(
    private val guard: LoadGuard,
    private val settings: SettingsPresenter,
    private val holder: ModelHolder,
    private val scope: CoroutineScope,
) {
    /** Loads the last model. [exitReason] asks the system why the last run ended; null: it does not say. */
    fun begin(exitReason: () -> String?): Notice? {
        val ended = guard.crashedLast
        val last = settings.state.value.lastBundle
        if (ended == null && last != null) holder.open(last)
        rememberLoads()
        if (ended == null) return null
        guard.finished()
        settings.rememberModel(null)
        return Notice.EndedWhileLoading(ended, exitReason())
    }

    private fun rememberLoads() {
        scope.launch { holder.state.filterIsInstance<ModelState.Ready>().collect { settings.rememberModel(it.id) } }
    }
}
