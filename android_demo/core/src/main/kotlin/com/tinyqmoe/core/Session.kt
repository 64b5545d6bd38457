package com.tinyqmoe.core

import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.StateFlow
import java.time.LocalDate

/** Why an answer ended. */
enum class Ending {
    /** The model said so. */
    END,

    /** The limit of tokens was reached. */
    LIMIT,

    /** The context is full. */
    CONTEXT,
}

/** What comes while an answer is computed. */
sealed interface Reply {
    /** The oldest [messages] found no room in the context and were left out; [words] says so. Comes first, if at all. */
    data class Dropped(val messages: Int, val words: String) : Reply

    /** How much of the prompt was read, in tokens. */
    data class Reading(val done: Int, val total: Int) : Reply

    /** The next characters of the answer. */
    data class Text(val text: String) : Reply

    /** The end of the answer; comes last. */
    data class Done(val ending: Ending, val stats: SessionStats) : Reply
}

/**
 * Figures of the last answer, while it comes and after it.
 *
 * @property reusedTokens tokens of the prompt that the cache held already.
 * @property firstTokenMillis time from the question to the first token, or null before it.
 * @property tokensPerSecond speed of the tokens after the first, or null before the second.
 */
data class SessionStats(
    val promptTokens: Int = 0,
    val reusedTokens: Int = 0,
    val answerTokens: Int = 0,
    val firstTokenMillis: Long? = null,
    val tokensPerSecond: Double? = null,
    val engine: EngineState? = null,
)

/** Limits of an answer, in tokens. */
data class ReplyLimits(val maxNewTokens: Int = 512)

/**
 * A model that converses: an engine with its tokenizer and chat format, owned by one thread of its own.
 *
 * The KV cache is kept between answers as far as the conversations agree, so a turn costs its own tokens.
 */
class Session(val bundle: Bundle, private val tokenizer: Tokenizer, private val engine: Engine) {
    /** Figures of the last answer. */
    val stats: StateFlow<SessionStats> get() = TODO()

    /**
     * The answer to a conversation that ends with a user's message. Nothing happens before it is collected. Cancel the
     * collection to stop: it takes effect within a token, or a batch of the prompt. Another answer waits for this one.
     *
     * The oldest turns are left out where the context is full; the system prompt stays. A model without a chat format
     * goes on with the text of the last message. Throws [BundleError].
     */
    fun reply(
        messages: List<Message>,
        sampling: Sampling = Sampling(),
        limits: ReplyLimits = ReplyLimits(),
        date: LocalDate = LocalDate.now(),
    ): Flow<Reply> = TODO()

    /** Ends the session when the answer that is being computed has ended: cancel it first. More calls do no harm. */
    suspend fun close() {
        TODO()
    }

    companion object {
        /** Opens a session of a bundle on a thread of its own. Throws [BundleError]. */
        suspend fun open(bundle: Bundle, opener: EngineOpener, options: EngineOptions = EngineOptions()): Session = TODO()
    }
}
