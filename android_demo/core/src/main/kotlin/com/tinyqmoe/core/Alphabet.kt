package com.tinyqmoe.core

import java.io.ByteArrayOutputStream

/** How a vocabulary spells text: in bytes, or in characters with a fallback to bytes. */
internal sealed interface Alphabet {
    /** Ids of the symbols of a word. What the vocabulary lacks is left out, as the library does. */
    fun symbols(word: String): IntArray

    /** The vocabulary's spelling of a word, to look it up whole. */
    fun spelling(word: String): String

    /** The bytes of a token, as the vocabulary spells it. */
    fun bytes(token: String): ByteArray
}

/** GPT-2's: a character stands for each byte, its own where it prints, else one from 256 on. */
internal class ByteAlphabet(vocab: Map<String, Int>) : Alphabet {
    private val ids = IntArray(256) { vocab[CHARACTERS[it].toString()] ?: -1 }

    override fun symbols(word: String): IntArray =
        word.toByteArray().map { ids[it.toInt() and 0xff] }.filter { it >= 0 }.toIntArray()

    override fun spelling(word: String): String =
        word.toByteArray().joinToString("") { CHARACTERS[it.toInt() and 0xff].toString() }

    override fun bytes(token: String): ByteArray {
        val out = ByteArrayOutputStream(token.length)
        for (c in token) BYTES[c]?.let { out.write(it) } ?: out.write(c.toString().toByteArray())
        return out.toByteArray()
    }

    private companion object {
        val CHARACTERS: CharArray =
            CharArray(256).also { characters ->
                var next = 256
                for (b in 0..255) {
                    val prints = b in 33..126 || b in 161..172 || b >= 174
                    characters[b] = if (prints) b.toChar() else (next++).toChar()
                }
            }
        val BYTES: Map<Char, Int> = CHARACTERS.withIndex().associate { (b, c) -> c to b }
    }
}

/** SentencePiece's: characters, with `▁` for a space, and `<0x41>` for a byte of what the vocabulary lacks. */
internal class CharacterAlphabet(private val vocab: Map<String, Int>) : Alphabet {
    private val byteIds = IntArray(256) { vocab["<0x%02X>".format(it)] ?: -1 }

    /** Whether every byte has a token, so that any text can be written. */
    val complete: Boolean get() = byteIds.all { it >= 0 }

    override fun symbols(word: String): IntArray {
        val out = ArrayList<Int>(word.length)
        var at = 0
        while (at < word.length) {
            val character = String(Character.toChars(word.codePointAt(at)))
            val id = vocab[character]
            if (id != null) out += id else character.toByteArray().mapTo(out) { byteIds[it.toInt() and 0xff] }
            at += character.length
        }
        return out.toIntArray()
    }

    override fun spelling(word: String): String = word

    override fun bytes(token: String): ByteArray {
        val byte = BYTE.matchEntire(token) ?: return token.replace('▁', ' ').toByteArray()
        return byteArrayOf(byte.groupValues[1].toInt(16).toByte())
    }

    private companion object {
        val BYTE = Regex("<0x([0-9A-F]{2})>")
    }
}
