package com.tinyqmoe.core

/**
 * A bundle's tokenizer.json: byte-pair encoding of bytes (GPT-2, Llama 3, Qwen2, SmolLM2), or of characters with a
 * fallback to bytes (Llama 2, Mistral). Ids are those of the library `tokenizers`.
 *
 * It may be used by several threads.
 */
class Tokenizer private constructor() {
    /**
     * Ids of a text. [control]: whether it may hold control tokens, which what a user typed may not.
     */
    fun encode(text: String, control: Boolean = false): IntArray = TODO()

    /** The text of tokens; control tokens have none. */
    fun decode(ids: IntArray): String = TODO()

    /** The bytes of one token inside of a text; of a control token none. */
    fun bytes(id: Int): ByteArray = TODO()

    companion object {
        /** The tokenizer of a tokenizer.json. Throws [BundleError] (TOKENIZER) that names what is not known here. */
        fun read(text: String): Tokenizer = TODO()
    }
}

/** Text out of tokens, in whole characters: a character may take several tokens. */
class TextStream(private val tokenizer: Tokenizer) {
    /** The characters that [token] completes. */
    fun step(token: Int): String = TODO()

    /** What is left when no token follows: a replacement character where a character is not complete, or nothing. */
    fun rest(): String = TODO()
}
