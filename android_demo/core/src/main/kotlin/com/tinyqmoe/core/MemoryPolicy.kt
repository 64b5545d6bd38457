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
    BACKGROUND("The answer was stopped: the app went to the background."),
}

/**
 * What to do on memory warnings, heat, background and a full disk: a state machine without a clock, a thread or a
 * system call. docs/apps.md has its table, and tests/golden/policy.tsv what it does event by event, in Swift too.
 *
 * @param budgetBytes memory for expanded weights when all is well.
 */
class MemoryPolicy(private val budgetBytes: Long) {
    private var budget = budgetBytes
    private var loaded = false
    private var generating = false
    private var inBackground = false

    /** Memory was short in the background: a model that was still loading goes too. */
    private var keepsNone = false

    /** The policy unloaded the model, and loads it again in the foreground. */
    private var owesReload = false
    private var thermal = PolicyEvent.Thermal.NOMINAL

    /** The actions that an event asks for. */
    fun on(event: PolicyEvent): List<PolicyAction> {
        when (event) {
            is PolicyEvent.MemoryWarning -> return warned(event)
            is PolicyEvent.Thermal -> return heated(event)
            PolicyEvent.Foreground -> return returned()
            PolicyEvent.LowDisk -> return listOf(PolicyAction.DropCacheFolder)
            PolicyEvent.Loaded -> return arrived()
            PolicyEvent.Unloaded -> { loaded = false; generating = false }
            PolicyEvent.Background -> inBackground = true
            PolicyEvent.GenerationStarted -> generating = true
            PolicyEvent.GenerationEnded -> generating = false
        }
        return emptyList()
    }

    private fun warned(level: PolicyEvent.MemoryWarning): List<PolicyAction> {
        if (level == PolicyEvent.MemoryWarning.MODERATE) return halved()
        budget = 0
        keepsNone = inBackground
        val actions = arrayListOf<PolicyAction>(PolicyAction.Trim(PolicyAction.ALL))
        if (inBackground) {
            actions += stopped(StopReason.BACKGROUND)
            if (loaded) actions += unloaded()
        } else if (level == PolicyEvent.MemoryWarning.CRITICAL) {
            actions += stopped(StopReason.MEMORY)
        }
        return actions
    }

    private fun halved(): List<PolicyAction> {
        val freed = budget - budget / 2
        budget -= freed
        return if (freed > 0) listOf(PolicyAction.Trim(freed)) else emptyList()
    }

    private fun heated(level: PolicyEvent.Thermal): List<PolicyAction> {
        val before = thermal
        thermal = level
        if (pauseMillis(level) == pauseMillis(before)) return emptyList()
        val stops = if (level == PolicyEvent.Thermal.CRITICAL) stopped(StopReason.HEAT) else emptyList()
        return stops + PolicyAction.Pause(pauseMillis(level))
    }

    private fun arrived(): List<PolicyAction> {
        loaded = true
        return if (keepsNone) unloaded() else listOf(PolicyAction.SetBudget(budget))
    }

    /** What a warning took comes back with the app; a model that is loaded again gets the budget then. */
    private fun returned(): List<PolicyAction> {
        val reloads = owesReload
        val grows = loaded && budget != budgetBytes
        inBackground = false
        keepsNone = false
        owesReload = false
        budget = budgetBytes
        if (reloads) return listOf(PolicyAction.Reload)
        return if (grows) listOf(PolicyAction.SetBudget(budget)) else emptyList()
    }

    private fun stopped(reason: StopReason): List<PolicyAction> {
        if (!generating) return emptyList()
        generating = false
        return listOf(PolicyAction.StopGeneration(reason))
    }

    private fun unloaded(): List<PolicyAction> {
        loaded = false
        owesReload = true
        return listOf(PolicyAction.Unload)
    }

    private fun pauseMillis(level: PolicyEvent.Thermal): Long =
        when (level) {
            PolicyEvent.Thermal.NOMINAL, PolicyEvent.Thermal.FAIR -> 0
            PolicyEvent.Thermal.SERIOUS -> 100
            PolicyEvent.Thermal.CRITICAL -> 500
        }
}
