package com.tinyqmoe.core

/**
 * How the next token is chosen. [temperature] 0 is greedy. [topK] keeps that many of the likeliest tokens, 0 all;
 * [topP] keeps the likeliest of that probability. [seed] chooses the random numbers.
 */
data class Sampling(
    val temperature: Double = 0.0,
    val topK: Int = 0,
    val topP: Double = 1.0,
    val seed: Long = 0,
) {
    init {
        val finite = temperature >= 0 && temperature < Double.POSITIVE_INFINITY
        require(finite) { "The temperature must be 0 or a positive number." }
        require(topK >= 0) { "Top-k must not be negative." }
        require(topP > 0 && topP <= 1) { "Top-p must be above 0, and at most 1." }
    }

    val greedy: Boolean get() = temperature == 0.0
}

/**
 * Chooses tokens. The same seed and logits give the same tokens in Kotlin and Swift: tests/golden/README.md defines
 * each step, in doubles.
 */
class Sampler(private val sampling: Sampling) {
    private val random = SplitMix64(sampling.seed)

    /** A token for logits, float [vocab]. */
    fun choose(logits: FloatArray): Int {
        if (sampling.greedy) return best(logits)
        val order = order(logits)
        val n = if (sampling.topK in 1 until order.size) sampling.topK else order.size
        val highest = logits[order[0]].toDouble()
        val weights = DoubleArray(n) { exp((logits[order[it]] - highest) / sampling.temperature) }
        val enough = sampling.topP * weights.sum()
        var mass = 0.0
        var kept = 0
        while (kept < n && (kept == 0 || mass < enough)) mass += weights[kept++]
        val wanted = random.uniform() * mass
        var sum = 0.0
        for (i in 0 until kept) {
            sum += weights[i]
            if (wanted < sum) return order[i]
        }
        return order[kept - 1]
    }

    private fun best(logits: FloatArray): Int {
        var best = 0
        for (i in logits.indices) if (logits[i] > logits[best]) best = i
        return best
    }

    /**
     * Tokens from the highest logit on, of equals the first: logits as whole numbers of the same order, and ids
     * below.
     */
    private fun order(logits: FloatArray): IntArray {
        val keys =
            LongArray(logits.size) { i ->
                val bits = (logits[i] + 0.0f).toRawBits() // so that -0 is 0
                val ascending = if (bits < 0) bits.inv() else bits or Int.MIN_VALUE
                (ascending.inv().toLong() and 0xffffffffL shl 32) + i + Long.MIN_VALUE
            }
        keys.sort()
        return IntArray(keys.size) { keys[it].toInt() }
    }

    internal companion object {
        private const val INVERSE_LN2 = 1.4426950408889634 // 0x1.71547652b82fep0
        private const val LN2_HIGH = 6.93147180369123816490e-01 // 0x1.62e42feep-1
        private const val LN2_LOW = 1.90821492927058770002e-10 // 0x1.a39ef35793c76p-33

        /**
         * The exponential of a number that is not positive; no library's, so that all languages have the same
         * bits.
         */
        fun exp(x: Double): Double {
            if (x < -700) return 0.0
            val n = (x * INVERSE_LN2 - 0.5).toInt()
            val r = (x - n * LN2_HIGH) - n * LN2_LOW
            var p = 1.0
            for (divisor in 13 downTo 1) p = 1.0 + p * r / divisor
            return p * Double.fromBits((n + 1023L) shl 52)
        }
    }
}

/** Random numbers of 64 bits. */
private class SplitMix64(private var state: Long) {
    /** The next number in [0, 1): the 53 highest bits. */
    fun uniform(): Double {
        state += -0x61c8864680b583ebL // 0x9E3779B97F4A7C15
        var z = state
        z = (z xor (z ushr 30)) * -0x40a7b892e31b1a47L // 0xBF58476D1CE4E5B9
        z = (z xor (z ushr 27)) * -0x6b2fb644ecceee15L // 0x94D049BB133111EB
        return ((z xor (z ushr 31)) ushr 11) * (1.0 / (1L shl 53))
    }
}
