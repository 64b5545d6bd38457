package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.PolicyAction
import com.tinyqmoe.core.PolicyEvent
import com.tinyqmoe.core.Residency

/**
 * Does what the memory policy says. All calls come from one thread. Before the first model there is nothing in memory to
 * free, and the native library, which a device may lack, is left alone.
 *
 * @param policy MemoryPolicy.on of the core.
 */
class PolicyRunner(private val policy: (PolicyEvent) -> List<PolicyAction>, private val residency: Residency) {
    private lateinit var holder: ModelHolder
    private lateinit var chat: ChatPresenter
    private var hasLoaded = false

    /** Names what the actions are done to: both of them tell this of their events, so neither can come first. */
    fun connect(holder: ModelHolder, chat: ChatPresenter) {
        this.holder = holder
        this.chat = chat
    }

    fun on(event: PolicyEvent) {
        if (event == PolicyEvent.Loaded) hasLoaded = true
        policy(event).forEach(::act)
    }

    private fun act(action: PolicyAction) {
        when (action) {
            is PolicyAction.Trim -> if (hasLoaded) residency.trim(action.bytes)
            is PolicyAction.SetBudget -> if (hasLoaded) residency.setBudget(action.bytes)
            is PolicyAction.StopGeneration -> chat.stop(Notice.Stopped(action.reason))
            is PolicyAction.Pause -> holder.pauseMillis = action.millis
            PolicyAction.Unload -> holder.unload()
            PolicyAction.Reload -> holder.reload()
            PolicyAction.DropCacheFolder -> if (hasLoaded) residency.setCacheFolder(null) // the app sets none
        }
    }
}
