package com.tinyqmoe.core

import java.util.Locale

enum class Verdict { LOGITS, GREEDY, BITS, CONTEXT }

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

/**
 * All checks of a model on this device. [bits] is the SHA-256 of the exact logits of all prompts, as `tinyqmoe check`
 * says it.
 */
class CheckReport(val model: String, val device: String, val checks: List<Check>, val bits: String) {
    val passed: Boolean get() = checks.isNotEmpty() && checks.all { it.passed }

    /** Whether the logits have the same bits as where the bundle was made. */
    val sameBits: Boolean
        get() = checks.filter { it.verdict == Verdict.BITS }.let { bits -> bits.isNotEmpty() && bits.all { it.passed } }

    /** The report in words, to show and share. */
    fun text(): String {
        val lines = arrayListOf("$model on $device: ${if (passed) "passed" else "FAILED"}")
        lines += "The logits have ${if (sameBits) "the same bits as" else "OTHER bits than"} where the model was made."
        lines += "SHA-256 of the exact logits: $bits"
        for (check in checks) lines += line(check)
        return lines.joinToString("\n")
    }

    private fun line(check: Check): String {
        val measured =
            if (check.klWorst == null) ""
            else ", KL %.1e, %.1f dB at worst".format(Locale.ROOT, check.klWorst, check.sqnrWorst)
        val detail = if (check.detail.isEmpty()) "" else " (${check.detail})"
        val verdict = "${if (check.passed) "ok" else "FAILED"} ${check.verdict.name.lowercase(Locale.ROOT)}"
        return "$verdict: ${check.what}$measured$detail"
    }

    /**
     * The report as JSON with the names of `tinyqmoe parity --json`, and [bits], to share. A figure that is not
     * finite is null.
     */
    fun json(): String =
        Json.write(
            mapOf(
                "model" to model,
                "device" to device,
                "passed" to passed,
                "bits" to bits,
                "checks" to
                    checks.map { check ->
                        mapOf(
                            "verdict" to check.verdict.name.lowercase(Locale.ROOT),
                            "what" to check.what,
                            "passed" to check.passed,
                            "positions" to check.positions,
                            "kl_median" to finite(check.klMedian),
                            "kl_worst" to finite(check.klWorst),
                            "sqnr_db_median" to finite(check.sqnrMedian),
                            "sqnr_db_worst" to finite(check.sqnrWorst),
                            "detail" to check.detail,
                        )
                    },
            ),
        )

    private fun finite(value: Double?): Double? = value?.takeIf { it.isFinite() }
}
