package com.tinyqmoe.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNotEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File
import kotlin.concurrent.thread

class TokenizerTest {
    private val vectors = Project.json("tokenizer/vectors.json").map()
    private val texts = vectors["texts"].list().map { it as String }

    private fun read(file: Any?) = Tokenizer.read(File(Project.golden, file as String).readText())

    @Test
    fun idsAreThoseOfTheLibrary() {
        for (entry in vectors["tokenizers"].list().map { it.map() }) {
            val tokenizer = read(entry["file"])
            for ((i, text) in texts.withIndex()) {
                val name = "${entry["name"]}: ${Json.write(text)}"
                val ids = tokenizer.encode(text)
                assertEquals(name, entry["ids"].list()[i].ints(), ids.asList())
                assertEquals("$name, control", entry["control_ids"].list()[i].ints(), tokenizer.encode(text, true).asList())
                assertEquals("$name, decoded", entry["decoded"].list()[i], tokenizer.decode(ids))
            }
        }
    }

    @Test
    fun theVectorsCoverEveryKind() {
        val names = vectors["tokenizers"].list().map { it.map()["name"] }
        assertTrue(names.containsAll(listOf("demo", "gpt2", "llama3", "qwen2", "smollm2", "llama2", "mistral", "trimmed")))
        assertTrue(texts.size > 50)
    }

    @Test
    fun textComesInWholeCharacters() {
        for (entry in vectors["tokenizers"].list().map { it.map() }) {
            val tokenizer = read(entry["file"])
            for (text in texts) {
                val stream = TextStream(tokenizer)
                val pieces = tokenizer.encode(text).map { stream.step(it) } + stream.rest()
                assertTrue(pieces.none { '\uFFFD' in it })
                // A text that is decoded by itself may lose a space at its beginning.
                val whole = pieces.joinToString("")
                assertTrue(tokenizer.decode(tokenizer.encode(text)) in listOf(whole, whole.removePrefix(" ")))
            }
        }
    }

    @Test
    fun aCharacterThatIsCutIsShownAtTheEnd() {
        val tokenizer = read("tokenizer/gpt2.json")
        val ids = tokenizer.encode("🪁")
        val stream = TextStream(tokenizer)
        assertEquals("", ids.dropLast(1).joinToString("") { stream.step(it) })
        assertEquals("\uFFFD", stream.rest())
        assertEquals("", stream.rest())
    }

    @Test
    fun whatIsNotKnownIsRefusedByName() {
        for (edit in vectors["refused"].list().map { it.map() }) {
            val description = Project.json(edit["file"] as String)
            val text = Json.write(changed(description, edit["path"].list(), edit["value"]))
            refused(BundleError.Kind.TOKENIZER, edit["names"] as String) { Tokenizer.read(text) }
        }
    }

    private fun changed(value: Any?, path: List<*>, new: Any?): Any? {
        val first = path.firstOrNull() ?: return new
        if (value is Map<*, *>) return value + (first to changed(value[first], path.drop(1), new))
        val index = (first as JsonNumber).spelling.toInt()
        return value.list().mapIndexed { i, item -> if (i == index) changed(item, path.drop(1), new) else item }
    }

    @Test
    fun whatIsNoTokenizerIsRefused() {
        for (text in listOf("", "[]", "{}", "{\"model\": 1}")) refused(BundleError.Kind.TOKENIZER) { Tokenizer.read(text) }
        val lacks = Json.write(changed(Project.json("tokenizer/llama2.json"), listOf("model", "vocab", "<0x41>"), null))
        refused(BundleError.Kind.TOKENIZER, "vocab.<0x41>") { Tokenizer.read(lacks) }
    }

    @Test
    fun severalThreadsMayUseOne() {
        val tokenizer = read("tokenizer/llama3.json")
        val expected = texts.map { tokenizer.encode(it).asList() }
        val wrong = java.util.concurrent.atomic.AtomicInteger()
        List(4) { thread { texts.forEachIndexed { i, t -> if (tokenizer.encode(t).asList() != expected[i]) wrong.incrementAndGet() } } }
            .forEach { it.join() }
        assertEquals(0, wrong.get())
        assertNotEquals(0, expected.sumOf { it.size })
    }

    @Test
    fun aLongWordTakesNoSquareOfTime() {
        val tokenizer = read("tokenizer/llama2.json") // its words are whole texts
        val text = "the kite flew ".repeat(20_000)
        assertEquals(text, tokenizer.decode(tokenizer.encode(text)))
    }
}
