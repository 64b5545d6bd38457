package com.tinyqmoe.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class SamplerTest {
    @Test
    fun drawsAreThoseOfTheGoldenFile() {
        val vectors = Project.json("sampler.json").list().map { it.map() }
        assertTrue(vectors.size > 10)
        for (vector in vectors) {
            val sampling =
                Sampling(
                    (vector["temperature"] as JsonNumber).toDouble(),
                    (vector["top_k"] as JsonNumber).spelling.toInt(),
                    (vector["top_p"] as JsonNumber).toDouble(),
                    (vector["seed"] as String).toULong().toLong(),
                )
            val logits = vector["logits"].list().map { (it as JsonNumber).toDouble().toFloat() }.toFloatArray()
            val sampler = Sampler(sampling)
            val expected = vector["tokens"].ints()
            assertEquals("$sampling", expected, expected.map { sampler.choose(logits) })
        }
    }

    @Test
    fun wrongSamplingsAreRefused() {
        for (make in listOf({ Sampling(-1.0) }, { Sampling(Double.NaN) }, { Sampling(topK = -1) }, { Sampling(topP = 0.0) }, { Sampling(topP = 1.1) })) {
            assertThrows(IllegalArgumentException::class.java) { make() }
        }
    }
}
