package com.tinyqmoe.core

import kotlin.math.exp
import kotlin.math.ln
import kotlin.math.log10
import kotlin.math.max
import kotlin.math.pow
import kotlin.math.sqrt

/** The gates of the median and the worst position (docs/parity.md): KL in nats, SQNR in dB. */
internal data class Gate(val medianKl: Double, val medianSqnr: Double, val worstKl: Double, val worstSqnr: Double) {
    /** The margin between two logits that noise of the permitted size can close: twice its standard deviation. */
    fun nearTie(reference: FloatArray): Double {
        val mean = reference.sumOf { it.toDouble() } / reference.size
        val variance = reference.sumOf { (it - mean) * (it - mean) } / reference.size
        return 2 * sqrt(variance) * 10.0.pow(-worstSqnr / 20)
    }

    companion object {
        /** Of a session, whose activations are int16, by its KV cache. tests/golden/gates.tsv has them. */
        fun of(kvType: KvType): Gate =
            when (kvType) {
                KvType.FLOAT16, KvType.FLOAT32 -> Gate(5e-4, 42.0, 5e-3, 23.0)
                KvType.INT8 -> Gate(2e-2, 24.0, 3e-2, 19.0)
            }
    }
}

/**
 * How far logits are from the reference at one position. [same]: the best token is the reference's, or a near
 * tie.
 */
internal data class Difference(val kl: Double, val sqnr: Double, val same: Boolean) {
    companion object {
        /**
         * Of two rows of logits, float [vocab]. The mean of a row says nothing (softmax ignores it), so it is no
         * signal.
         */
        fun of(reference: FloatArray, got: FloatArray, gate: Gate): Difference {
            if (!got.all { it.isFinite() }) return Difference(Double.POSITIVE_INFINITY, Double.NEGATIVE_INFINITY, false)
            val mean = reference.sumOf { it.toDouble() } / reference.size
            val p = logSumExp(reference)
            val q = logSumExp(got)
            var kl = 0.0
            var noise = 0.0
            var signal = 0.0
            for (i in reference.indices) {
                val ref = reference[i].toDouble()
                val new = got[i].toDouble()
                kl += exp(ref - p) * ((ref - p) - (new - q))
                noise += (new - ref) * (new - ref)
                signal += (ref - mean) * (ref - mean)
            }
            val sqnr = if (noise == 0.0) Double.POSITIVE_INFINITY else 10 * log10(signal / noise)
            val margin = reference.maxOrNull()!!.toDouble() - reference[best(got)]
            return Difference(max(0.0, kl), sqnr, margin <= gate.nearTie(reference))
        }

        /** The token with the highest logit, of equals the first. */
        fun best(logits: FloatArray): Int = logits.indices.maxByOrNull { logits[it] }!!

        private fun logSumExp(x: FloatArray): Double {
            val highest = x.maxOrNull()!!.toDouble()
            return highest + ln(x.sumOf { exp(it - highest) })
        }
    }
}
