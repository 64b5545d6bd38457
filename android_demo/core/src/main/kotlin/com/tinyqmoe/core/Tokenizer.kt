package com.tinyqmoe.core

import java.io.ByteArrayOutputStream
import java.util.regex.Pattern

/** An entry of `added_tokens`. [control]: what a user types must not become it. */
internal data class AddedToken(val id: Int, val text: String, val control: Boolean)

/** The parts of a tokenizer.json, as [TokenizerReader] finds them. */
internal class TokenizerParts(
    val added: List<AddedToken>,
    val normalize: (String) -> String,
    /** Words of a text. The flag says whether it begins the whole text. */
    val split: (String, Boolean) -> List<String>,
    val alphabet: Alphabet,
    val vocab: Map<String, Int>,
    val pairs: BytePairs,
    val wholeWordsFirst: Boolean,
    /** Whether decoding takes away one space at the beginning. */
    val stripsSpace: Boolean,
)

/**
 * A bundle's tokenizer.json: byte-pair encoding of bytes (GPT-2, Llama 3, Qwen2, SmolLM2), or of characters with a
 * fallback to bytes (Llama 2, Mistral). Ids are those of the library `tokenizers`, without what a post-processor adds.
 *
 * It may be used by several threads.
 */
class Tokenizer private constructor(private val parts: TokenizerParts) {
    private val all = AddedTexts(parts.added)
    private val typed = AddedTexts(parts.added.filter { !it.control })
    private val bytes: Array<ByteArray?>

    init {
        val largest = maxOf(parts.vocab.values.maxOrNull() ?: 0, parts.added.maxOfOrNull { it.id } ?: 0)
        bytes = arrayOfNulls(largest + 1)
        for ((token, id) in parts.vocab) bytes[id] = parts.alphabet.bytes(token)
        for (token in parts.added) bytes[token.id] = if (token.control) ByteArray(0) else token.text.toByteArray()
    }

    /** Ids of a text. [control]: whether it may hold control tokens, which what a user typed may not. */
    fun encode(text: String, control: Boolean = false): IntArray {
        val out = ArrayList<Int>()
        val added = if (control) all else typed
        var begins = true
        for (piece in added.isolate(text)) {
            val id = added.ids[piece]
            if (id != null) out += id else encodePiece(piece, begins, out)
            begins = false
        }
        return out.toIntArray()
    }

    private fun encodePiece(piece: String, begins: Boolean, out: MutableList<Int>) {
        for (word in parts.split(parts.normalize(piece), begins)) {
            val whole = if (parts.wholeWordsFirst) parts.vocab[parts.alphabet.spelling(word)] else null
            if (whole != null) out += whole else parts.pairs.merge(parts.alphabet.symbols(word)).forEach { out += it }
        }
    }

    /** The text of tokens; control tokens have none. */
    fun decode(ids: IntArray): String {
        val out = ByteArrayOutputStream()
        for (id in ids) out.write(bytes(id))
        val text = out.toString("UTF-8")
        return if (parts.stripsSpace) text.removePrefix(" ") else text
    }

    /** The bytes of one token inside of a text; of a control token, and of an id that has no token, none. */
    fun bytes(id: Int): ByteArray = bytes.getOrNull(id) ?: ByteArray(0)

    companion object {
        /** The tokenizer of a tokenizer.json. Throws [BundleError] (TOKENIZER) that names what is not known here. */
        fun read(text: String): Tokenizer = Tokenizer(TokenizerReader.read(text))
    }
}

/** Finds the texts of added tokens; of two that begin at one place the longer. */
private class AddedTexts(tokens: List<AddedToken>) {
    val ids: Map<String, Int> = tokens.associate { it.text to it.id }
    private val pattern: Pattern? =
        if (tokens.isEmpty()) null
        else Pattern.compile(ids.keys.sortedByDescending { it.length }.joinToString("|") { Pattern.quote(it) })

    fun isolate(text: String): List<String> =
        if (pattern != null) Patterns.isolate(text, pattern) else if (text.isEmpty()) emptyList() else listOf(text)
}

/** Text out of tokens, in whole characters: a character may take several tokens. */
class TextStream(private val tokenizer: Tokenizer) {
    private var held = ByteArray(0)

    /** The characters that [token] completes. */
    fun step(token: Int): String {
        held += tokenizer.bytes(token)
        val n = completeBytes()
        return String(held, 0, n, Charsets.UTF_8).also { held = held.copyOfRange(n, held.size) }
    }

    /** What is left when no token follows: a replacement character where a character is not complete, or nothing. */
    fun rest(): String = String(held, Charsets.UTF_8).also { held = ByteArray(0) }

    /** Number of bytes up to the last character, which may lack some. */
    private fun completeBytes(): Int {
        for (back in 1..minOf(3, held.size)) {
            val byte = held[held.size - back].toInt() and 0xff
            if (byte >= 0xc0) {
                val needed = if (byte >= 0xf0) 4 else if (byte >= 0xe0) 3 else 2
                return if (needed > back) held.size - back else held.size
            }
            if (byte < 0x80) break
        }
        return held.size
    }
}
