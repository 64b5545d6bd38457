package com.tinyqmoe.core

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.exp
import kotlin.math.ln

/** The parts of "Check this model" that need no model. */
class ReferenceTest {
    private val file = File(scratch("reference"), "reference.safetensors")
    private val header =
        """{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},""" +
            """"i":{"dtype":"I64","shape":[1],"data_offsets":[16,24]},"d":{"dtype":"U8","shape":[2],"data_offsets":[24,26]}}"""

    private fun write(header: String = this.header, cut: Int = 0, id: Long = 9) {
        val buffer = ByteBuffer.allocate(8 + header.length + 26).order(ByteOrder.LITTLE_ENDIAN)
        buffer.putLong(header.length.toLong()).put(header.toByteArray())
        for (value in listOf(1f, -2f, 0.5f, 1e30f)) buffer.putFloat(value)
        buffer.putLong(id).put(byteArrayOf(7, -1))
        file.writeBytes(buffer.array().let { it.copyOf(it.size - cut) })
    }

    @Test
    fun tensorsAreRead() {
        write()
        Safetensors(file).use { read ->
            assertEquals(setOf("x", "i", "d"), read.names)
            assertArrayEquals(floatArrayOf(1f, -2f, 0.5f, 1e30f), read.floats("x"), 0f)
            assertArrayEquals(intArrayOf(9), read.ids("i"))
            assertArrayEquals(byteArrayOf(7, -1), read.raw("d"))
        }
    }

    @Test
    fun damagedOnesAreRefused() {
        fun refused(words: String) = refused(BundleError.Kind.DAMAGED, "reference.safetensors", words) { Safetensors(file).use { it.floats("x"); it.ids("i"); it.raw("d") } }
        refused("read")
        file.writeBytes(ByteArray(4))
        refused("early")
        file.writeBytes(ByteArray(8) { -1 } + ByteArray(100))
        refused("bytes")
        write(cut = 1)
        refused("early")
        write(header.replace("\"F32\"", "\"F16\""))
        refused("F32")
        write(header.replace("[0,16]", "[0,12]"))
        refused("size")
        write(header.dropLast(1) + " ")
        refused("JSON")
        write(header.replace("\"x\"", "\"y\""))
        refused("no x")
        write(id = -5)
        refused("-5")
    }

    @Test
    fun theGatesAreThoseOfParity() {
        val rows = Project.table("gates.tsv").filter { it["activations"] == "int16" } // what a session has
        assertEquals(KvType.entries.map { it.name.lowercase() }.toSet(), rows.map { it["kv_type"] }.toSet())
        for (row in rows) {
            fun number(name: String) = row.getValue(name).toDouble()
            val expected = Gate(number("median_kl"), number("median_sqnr_db"), number("worst_kl"), number("worst_sqnr_db"))
            assertEquals(expected, Gate.of(KvType.valueOf(row.getValue("kv_type").uppercase())))
        }
    }

    @Test
    fun differencesAreMeasured() {
        val gate = Gate.of(KvType.FLOAT16)
        val reference = floatArrayOf(0f, 1f, 3f, -2f)
        val same = Difference.of(reference, reference.clone(), gate)
        assertEquals(Difference(0.0, Double.POSITIVE_INFINITY, true), same)
        val shifted = Difference.of(reference, FloatArray(4) { reference[it] + 5 }, gate)
        assertEquals(0.0, shifted.kl, 1e-12)
        val other = floatArrayOf(0f, 4f, 3f, -2f)
        val p = reference.map { exp(it.toDouble()) }.let { e -> e.map { it / e.sum() } }
        val q = other.map { exp(it.toDouble()) }.let { e -> e.map { it / e.sum() } }
        val difference = Difference.of(reference, other, gate)
        assertEquals(p.indices.sumOf { p[it] * ln(p[it] / q[it]) }, difference.kl, 1e-12)
        assertEquals(10 * ln(13.0 / 9) / ln(10.0), difference.sqnr, 1e-9) // squares 0.25 + 0.25 + 6.25 + 6.25 over 9
        assertTrue(!difference.same)
        assertTrue(!Difference.of(reference, floatArrayOf(0f, Float.NaN, 3f, -2f), gate).same)
    }
}
