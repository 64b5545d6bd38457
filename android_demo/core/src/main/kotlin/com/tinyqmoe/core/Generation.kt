package com.tinyqmoe.core

import kotlinx.coroutines.ensureActive
import java.time.LocalDate
import kotlin.coroutines.coroutineContext

/** The tokens that an engine holds, so that a conversation goes on from where the one before it agrees. */
internal class KeptPrefix(private val engine: Engine) {
    private val held = ArrayList<Int>()

    /** Whether one more token finds no room. */
    val full: Boolean get() = engine.state().let { it.positions >= it.context }

    /**
     * Keeps what a prompt begins with, but for its last token, whose logits are asked for. Returns how many are
     * kept.
     */
    fun trim(prompt: IntArray): Int {
        var same = 0
        while (same < held.size && same < prompt.size - 1 && held[same] == prompt[same]) same++
        engine.trim(same)
        while (held.size > same) held.removeAt(held.size - 1)
        return same
    }

    val size: Int get() = held.size

    /** Feeds tokens by [call]; they are held if it succeeds. */
    fun <T> feed(tokens: IntArray, call: () -> T): T = call().also { held += tokens.asList() }

    fun forget() {
        held.clear()
        engine.trim(0)
    }
}

/** The tokens of one answer. */
internal class Generation(private val engine: Engine, private val cache: KeptPrefix, private val sampling: Sampling) {
    private val sampler = Sampler(sampling)
    private val logits = FloatArray(engine.state().vocab)

    /** Feeds what the cache lacks of a prompt, a batch at a time, and returns the first token of the answer. */
    suspend fun read(prompt: IntArray, progress: suspend (Int) -> Unit): Int {
        while (cache.size < prompt.size) {
            coroutineContext.ensureActive()
            val batch = prompt.copyOfRange(cache.size, minOf(cache.size + BATCH_TOKENS, prompt.size))
            val last = cache.size + batch.size == prompt.size
            cache.feed(batch) { engine.feed(batch, if (last) logits else null) }
            progress(cache.size)
        }
        return sampler.choose(logits)
    }

    /** Feeds a token and returns the next one. */
    fun next(token: Int): Int {
        val tokens = intArrayOf(token)
        if (sampling.greedy) return cache.feed(tokens) { engine.step(token) }
        cache.feed(tokens) { engine.feed(tokens, logits) }
        return sampler.choose(logits)
    }

    private companion object {
        /** A cancel takes effect between batches; larger ones are hardly faster. */
        const val BATCH_TOKENS = 32
    }
}

/** The ids of a prompt, and the number of messages that were left out, with [words] for the user. */
internal class Prompt(val ids: IntArray, val dropped: Int) {
    val words: String get() = "The context is full: the oldest $dropped messages are left out."
}

/** Conversations as token ids, within a context. */
internal class Prompts(private val manifest: Manifest, private val tokenizer: Tokenizer, private val context: Int) {
    /**
     * A conversation that leaves room for the answer: turns are left out from the oldest on, until the new tokens find
     * room, of which at most a quarter of the context is kept free. Throws [BundleError] (CONTEXT) where the last
     * message alone is too long.
     */
    fun fit(messages: List<Message>, limits: ReplyLimits, date: LocalDate): Prompt {
        val room = context - minOf(limits.maxNewTokens, context / 4)
        val first = if (messages.firstOrNull()?.role == Role.SYSTEM) 1 else 0
        var begin = first
        while (true) {
            val ids = encode(messages.take(first) + messages.drop(begin), date)
            val last = messages.size - begin <= 1
            if (ids.size <= room || last && ids.size <= context) return Prompt(ids, begin - first)
            if (last) throw tooLong(ids.size)
            begin = (begin + 1..messages.lastIndex).first { messages[it].role != Role.ASSISTANT }
        }
    }

    private fun encode(messages: List<Message>, date: LocalDate): IntArray {
        val chat = manifest.chat ?: return plain(messages.last().content)
        return chat.render(messages, date).flatMap { tokenizer.encode(it.text, it.control).asList() }.toIntArray()
    }

    /** A text to go on with, for a model that knows no chat. */
    private fun plain(text: String): IntArray {
        val bos = manifest.model.bosToken.takeIf { manifest.model.bosRule == BosRule.TOKENIZER }
        return listOfNotNull(bos).toIntArray() + tokenizer.encode(text)
    }

    private fun tooLong(tokens: Int): BundleError {
        val what = "The message has $tokens tokens, and the context of the model has $context."
        return BundleError(BundleError.Kind.CONTEXT, what, "Shorten the message or the system prompt.")
    }
}
