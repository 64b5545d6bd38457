package com.tinyqmoe.core

/** What happened to the app or the device. */
sealed interface PolicyEvent {
    /** The system asks for memory. [CRITICAL]: the app is next to be ended. */
    enum class MemoryWarning : PolicyEvent { MODERATE, LOW, CRITICAL }

    /** How hot the device is. */
    enum class Thermal : PolicyEvent { NOMINAL, FAIR, SERIOUS, CRITICAL }

    data object Background : PolicyEvent

    data object Foreground : PolicyEvent

    data object LowDisk : PolicyEvent

    data object GenerationStarted : PolicyEvent

    data object GenerationEnded : PolicyEvent

    /** A session was opened or closed, by the user or as asked. */
    data object Loaded : PolicyEvent

    data object Unloaded : PolicyEvent
}

/** What the app is to do, in this order. */
sealed interface PolicyAction {
    /** Free at least so many bytes of expanded weights: [Residency.trim]. [ALL] frees what there is. */
    data class Trim(val bytes: Long) : PolicyAction

    /** [Residency.setBudget]. */
    data class SetBudget(val bytes: Long) : PolicyAction

    /** Stop the answer, and say why. */
    data class StopGeneration(val reason: StopReason) : PolicyAction

    /** Close the session; the conversation stays. */
    data object Unload : PolicyAction

    /** Open the session again. */
    data object Reload : PolicyAction

    /** Delete the folder of expanded weights, and use none. */
    data object DropCacheFolder : PolicyAction

    /** Wait so many milliseconds between tokens ([Session.pauseMillis]); 0: none. */
    data class Pause(val millis: Long) : PolicyAction

    companion object {
        const val ALL = Long.MAX_VALUE
    }
}

/** Why an answer was stopped. */
enum class StopReason(val words: String) {
    MEMORY("The answer was stopped: the device is short of memory."),
    HEAT("The answer was stopped: the device is too hot."),
    BACKGROUND("The answer was stopped: the app went to the background and memory is short."),
}

/**
 * What to do on memory warnings, heat, background and a full disk: a state machine without a clock, a thread or a
 * system call. android_demo/README.md has its table.
 *
 * @param budgetBytes memory for expanded weights when all is well.
 */
class MemoryPolicy(private val budgetBytes: Long) {
    private var budget = budgetBytes
    private var loaded = false
    private var reloads = false
    private var generating = false
    private var inBackground = false
    private var pause = 0L

    /** The actions that an event asks for. */
    fun on(event: PolicyEvent): List<PolicyAction> =
        when (event) {
            is PolicyEvent.MemoryWarning -> warned(event)
            is PolicyEvent.Thermal -> heated(event)
            PolicyEvent.Background -> emptyList<PolicyAction>().also { inBackground = true }
            PolicyEvent.Foreground -> returned()
            PolicyEvent.LowDisk -> listOf(PolicyAction.DropCacheFolder)
            PolicyEvent.GenerationStarted -> emptyList<PolicyAction>().also { generating = true }
            PolicyEvent.GenerationEnded -> emptyList<PolicyAction>().also { generating = false }
            PolicyEvent.Loaded -> listOf(PolicyAction.SetBudget(budget)).also { loaded = true }
            PolicyEvent.Unloaded -> emptyList<PolicyAction>().also { loaded = false; generating = false }
        }

    private fun warned(level: PolicyEvent.MemoryWarning): List<PolicyAction> {
        val all = level != PolicyEvent.MemoryWarning.MODERATE
        val freed = if (all) budget else budget / 2
        budget -= freed
        val actions = arrayListOf<PolicyAction>(PolicyAction.Trim(if (all) PolicyAction.ALL else freed))
        val unloads = loaded && all && inBackground
        if (generating && (unloads || level == PolicyEvent.MemoryWarning.CRITICAL)) {
            actions += PolicyAction.StopGeneration(if (unloads) StopReason.BACKGROUND else StopReason.MEMORY)
            generating = false
        }
        if (unloads) {
            actions += PolicyAction.Unload
            reloads = true
            loaded = false
        }
        return actions
    }

    private fun heated(level: PolicyEvent.Thermal): List<PolicyAction> {
        val actions = ArrayList<PolicyAction>()
        if (level == PolicyEvent.Thermal.CRITICAL && generating) {
            actions += PolicyAction.StopGeneration(StopReason.HEAT)
            generating = false
        }
        val wanted =
            when (level) {
                PolicyEvent.Thermal.NOMINAL, PolicyEvent.Thermal.FAIR -> 0L
                PolicyEvent.Thermal.SERIOUS -> SERIOUS_MILLIS
                PolicyEvent.Thermal.CRITICAL -> CRITICAL_MILLIS
            }
        if (wanted != pause) actions += PolicyAction.Pause(wanted)
        pause = wanted
        return actions
    }

    /** What a warning took comes back with the app. */
    private fun returned(): List<PolicyAction> {
        inBackground = false
        val actions = ArrayList<PolicyAction>()
        if (budget != budgetBytes) actions += PolicyAction.SetBudget(budgetBytes)
        budget = budgetBytes
        if (reloads) actions += PolicyAction.Reload
        reloads = false
        return actions
    }

    private companion object {
        const val SERIOUS_MILLIS = 100L
        const val CRITICAL_MILLIS = 500L
    }
}
