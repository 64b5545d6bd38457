package com.tinyqmoe.core

import kotlinx.coroutines.ExecutorCoroutineDispatcher
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.delay
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.FlowCollector
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.buffer
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import kotlinx.coroutines.withContext
import java.time.LocalDate
import java.util.concurrent.Executors
import kotlin.coroutines.coroutineContext

/**
 * A model that converses: an engine with its tokenizer and chat format, owned by one thread of its own.
 *
 * The KV cache is kept between answers as far as the conversations agree, so a turn costs its own tokens.
 */
class Session private constructor(
    val bundle: Bundle,
    tokenizer: Tokenizer,
    private val engine: Engine,
    private val dispatcher: ExecutorCoroutineDispatcher,
) {
    /** A session of an engine that is open; the session closes it. */
    constructor(bundle: Bundle, tokenizer: Tokenizer, engine: Engine) : this(bundle, tokenizer, engine, ownThread())

    private val prompts = Prompts(bundle.manifest, tokenizer, engine.state().context)
    private val tokenizer = tokenizer
    private val cache = KeptPrefix(engine)
    private val turn = Mutex()
    private val figures = MutableStateFlow(SessionStats())
    private var closed = false

    /** Milliseconds to wait between tokens, on a device that is hot. */
    @Volatile
    var pauseMillis: Long = 0

    /** Figures of the last answer. */
    val stats: StateFlow<SessionStats> get() = figures

    /**
     * The answer to a conversation that ends with a user's message. Nothing happens before it is collected. Cancel the
     * collection to stop: it takes effect within a token, or a batch of the prompt. Another answer waits for this one.
     *
     * The oldest turns are left out where the context is full; the system prompt stays. A model without a chat format
     * goes on with the text of the last message. Throws [BundleError]; IllegalArgumentException for a system prompt
     * where [ChatFormat.hasSystem] is false.
     */
    fun reply(
        messages: List<Message>,
        sampling: Sampling = Sampling(),
        limits: ReplyLimits = ReplyLimits(),
        date: LocalDate = LocalDate.now(),
    ): Flow<Reply> =
        flow {
            turn.withLock {
                check(!closed) { "the session is closed" }
                val prompt = prompts.fit(messages, limits, date)
                if (prompt.dropped > 0) emit(Reply.Dropped(prompt.dropped, prompt.words))
                answer(prompt.ids, sampling, limits)
            }
        }.buffer(Channel.RENDEZVOUS).flowOn(dispatcher) // no token is computed ahead of who reads

    private suspend fun FlowCollector<Reply>.answer(prompt: IntArray, sampling: Sampling, limits: ReplyLimits) {
        val clock = AnswerClock(prompt.size, engine)
        val generation = Generation(engine, cache, sampling)
        val text = TextStream(tokenizer)
        clock.reused = cache.trim(prompt)
        var token = generation.read(prompt) { emit(Reply.Reading(it, prompt.size)) }
        var ending: Ending? = null
        while (ending == null) {
            if (token in bundle.manifest.model.eosTokens) {
                ending = Ending.END
                break
            }
            figures.value = clock.token()
            text.step(token).let { if (it.isNotEmpty()) emit(Reply.Text(it)) }
            coroutineContext.ensureActive()
            ending = if (clock.tokens == limits.maxNewTokens) Ending.LIMIT else if (cache.full) Ending.CONTEXT else null
            if (pauseMillis > 0) delay(pauseMillis)
            if (ending == null) token = generation.next(token)
        }
        text.rest().let { if (it.isNotEmpty()) emit(Reply.Text(it)) }
        figures.value = clock.stats()
        emit(Reply.Done(ending!!, figures.value))
    }

    /** Runs [block] with the engine, between answers; what it was fed is forgotten. For "Check this model". */
    suspend fun <T> withEngine(block: suspend (Engine) -> T): T =
        turn.withLock {
            check(!closed) { "the session is closed" }
            cache.forget()
            try {
                withContext(dispatcher) { block(engine) }
            } finally {
                cache.forget()
            }
        }

    /** Ends the session when the answer that is being computed has ended: cancel it first. More calls do no harm. */
    suspend fun close() =
        withContext(NonCancellable) {
            turn.withLock {
                if (!closed) {
                    closed = true
                    withContext(dispatcher) { engine.close() }
                    dispatcher.close()
                }
            }
        }

    companion object {
        /** Opens a session of a bundle on a thread of its own. Throws [BundleError]. */
        suspend fun open(bundle: Bundle, opener: EngineOpener, options: EngineOptions = EngineOptions()): Session {
            val dispatcher = ownThread()
            try {
                return withContext(dispatcher) {
                    val tokenizer = bundle.tokenizer()
                    Session(bundle, tokenizer, opener.open(bundle, options), dispatcher)
                }
            } catch (error: Throwable) {
                dispatcher.close()
                throw error
            }
        }

        private fun ownThread(): ExecutorCoroutineDispatcher =
            Executors.newSingleThreadExecutor { work -> Thread(work, "tinyqmoe-session") }.asCoroutineDispatcher()
    }
}
