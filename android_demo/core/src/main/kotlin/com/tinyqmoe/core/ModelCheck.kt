package com.tinyqmoe.core

/**
 * One check of a model, as `tinyqmoe parity` has it (docs/parity.md): its verdict, what was run, and what was measured.
 * KL in nats, SQNR in dB; null where it is not measured.
 */
data class Check(
    val verdict: Verdict,
    val what: String,
    val passed: Boolean,
    val positions: Int,
    val klMedian: Double? = null,
    val klWorst: Double? = null,
    val sqnrMedian: Double? = null,
    val sqnrWorst: Double? = null,
    val detail: String = "",
)

enum class Verdict { LOGITS, GREEDY, BITS, CONTEXT }

/** All checks of a model on this device. */
class CheckReport(val model: String, val device: String, val checks: List<Check>) {
    val passed: Boolean get() = checks.isNotEmpty() && checks.all { it.passed }

    /** Whether the logits have the same bits as where the bundle was made. */
    val sameBits: Boolean get() = checks.any { it.verdict == Verdict.BITS } && checks.none { it.verdict == Verdict.BITS && !it.passed }

    /** The report in words, to show and share. */
    fun text(): String = TODO()

    /** The report as JSON, to share. */
    fun json(): String = TODO()
}

/**
 * "Check this model": runs the prompts of `reference.safetensors`, and judges the answers as `tinyqmoe parity` does.
 * Whether the matrices decode to the quantizer's levels is left to the computer; SHA-256 of the files is [Bundle.verify].
 */
class ModelCheck(private val bundle: Bundle, private val engine: Engine, private val device: String) {
    /**
     * The report. [progress] is told the tokens that were run and those that will be. Forgets what the engine was fed.
     * Takes many seconds; it ends within a batch when its coroutine is cancelled. Throws [BundleError].
     */
    suspend fun run(progress: (done: Int, total: Int) -> Unit): CheckReport = TODO()
}
