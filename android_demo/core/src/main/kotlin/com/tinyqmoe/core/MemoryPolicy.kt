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

    /** The model was loaded or unloaded, as asked. */
    data object Loaded : PolicyEvent

    data object Unloaded : PolicyEvent
}

/** What the app is to do, in this order. */
sealed interface PolicyAction {
    /** Free at least so many bytes of expanded weights: [Residency.trim]. */
    data class Trim(val bytes: Long) : PolicyAction

    /** [Residency.setBudget]. */
    data class SetBudget(val bytes: Long) : PolicyAction

    /** Stop the answer, and say [words]. */
    data class StopGeneration(val words: String) : PolicyAction

    /** Close the session; the conversation stays. */
    data object Unload : PolicyAction

    /** Open the session again. */
    data object Reload : PolicyAction

    /** Delete the folder of expanded weights, and use none. */
    data object DropCacheFolder : PolicyAction

    /** Wait so many milliseconds between tokens; 0: none. */
    data class Pause(val millis: Long) : PolicyAction
}

/**
 * What to do on memory warnings, heat, background and a full disk: a state machine without a clock, a thread or a
 * system call. android_demo/README.md has its table.
 *
 * @param budgetBytes memory for expanded weights when all is well.
 */
class MemoryPolicy(private val budgetBytes: Long) {
    /** The actions that an event asks for. */
    fun on(event: PolicyEvent): List<PolicyAction> = TODO()
}
