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
        require(temperature >= 0 && temperature.isFinite()) { "The temperature must be 0 or a positive number." }
        require(topK >= 0) { "Top-k must not be negative." }
        require(topP > 0 && topP <= 1) { "Top-p must be above 0, and at most 1." }
    }

    val greedy: Boolean get() = temperature == 0.0
}

/** Chooses tokens. The same seed and logits give the same tokens in Kotlin and Swift (tests/golden/README.md). */
class Sampler(private val sampling: Sampling) {
    /** A token for logits, float [vocab]. */
    fun choose(logits: FloatArray): Int = TODO()
}
