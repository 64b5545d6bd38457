package com.tinyqmoe.core

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
    /**
     * The oldest [messages] found no room in the context and were left out; [words] says so. Comes first, if at
     * all.
     */
    data class Dropped(val messages: Int, val words: String) : Reply

    /** How much of the prompt is in the cache, in tokens. */
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
data class ReplyLimits(val maxNewTokens: Int = 512) {
    init {
        require(maxNewTokens > 0) { "An answer must have at least one token." }
    }
}

/** The times of one answer. */
internal class AnswerClock(private val promptTokens: Int, private val engine: Engine) {
    private val begin = System.nanoTime()
    private var first = 0L
    private var last = 0L
    var reused = 0
    var tokens = 0
        private set

    /** Counts a token that has come. */
    fun token(): SessionStats {
        last = System.nanoTime()
        if (tokens++ == 0) first = last
        return stats()
    }

    fun stats(): SessionStats =
        SessionStats(
            promptTokens,
            reused,
            tokens,
            if (tokens > 0) (first - begin) / 1_000_000 else null,
            if (tokens > 1 && last > first) (tokens - 1) * 1e9 / (last - first) else null,
            engine.state(),
        )
}
