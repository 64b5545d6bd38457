package com.tinyqmoe.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class JsonTest {
    @Test
    fun readsWhatJsonHas() {
        val value = Json.parse(""" {"a" : [1, -2.5e-3, true, false, null, "x\n\u00e9\ud83e\ude81\/"], "b": {}, "": []} """).map()
        assertEquals(listOf(JsonNumber("1"), JsonNumber("-2.5e-3"), true, false, null, "x\né🪁/"), value["a"])
        assertEquals(setOf("a", "b", ""), value.keys)
    }

    @Test
    fun refusesWhatIsNoJson() {
        val wrong =
            listOf(
                "", "{", "[1,]", "{\"a\":1,}", "[1 2]", "{\"a\" 1}", "{a:1}", "'a'", "01", "+1", ".5", "1.", "1e", "--1", "nul", "truer",
                "\"a", "\"\\x\"", "\"\\u12g4\"", "\"\\u12\"", "\"a\nb\"", "[1] 2", "NaN", "{\"a\":1,\"a\":2}", "[".repeat(101) + "]".repeat(101),
            )
        for (text in wrong) assertThrows(text, JsonError::class.java) { Json.parse(text) }
    }

    @Test
    fun namesThePlace() {
        val error = assertThrows(JsonError::class.java) { Json.parse("[1, x]") }
        assertTrue(error.message, "character 4" in error.message!!)
    }

    @Test
    fun writesWhatItReads() {
        val text = """{"a": [1, -2.5e-3, true, null], "b": "\"\\\n\u00e9\ud83e\ude81\u007f", "c": {}}"""
        assertEquals(text, Json.write(Json.parse(text)))
        assertEquals("[1, 2, 0.5]", Json.write(listOf(1, 2L, 0.5)))
        assertThrows(IllegalArgumentException::class.java) { Json.write(Double.NaN) }
    }
}
