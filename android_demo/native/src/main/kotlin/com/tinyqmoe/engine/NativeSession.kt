package com.tinyqmoe.engine

import com.tinyqmoe.core.Bundle
import com.tinyqmoe.core.BundleError
import com.tinyqmoe.core.CoreStatus
import com.tinyqmoe.core.Engine
import com.tinyqmoe.core.EngineOpener
import com.tinyqmoe.core.EngineOptions
import com.tinyqmoe.core.EngineState

/** A session of the core (exporter/native/include/tinyqmoe/session.h). */
class NativeSession private constructor(private var handle: Long) : Engine {
    private val context: Int = state().context
    private val vocab: Int = state().vocab

    override fun feed(tokens: IntArray, logits: FloatArray?) {
        require(logits == null || logits.size == vocab) { "logits must have $vocab numbers" }
        check(Native.feed(opened(), tokens, logits), tokens.size)
    }

    override fun step(token: Int): Int {
        val best = Native.step(opened(), token)
        if (best < 0) check(-best, 1)
        return best
    }

    override fun trim(positions: Int) = check(Native.trim(opened(), positions), 0)

    override fun state(): EngineState {
        val s = Native.state(opened())
        return EngineState(
            s[0].toInt(), s[1].toInt(), s[2].toInt(), s[3].toInt(), s[4], s[5], s[6], s[7], s[8],
        )
    }

    override fun close() {
        val closed = handle
        handle = 0
        if (closed != 0L) Native.close(closed)
    }

    private fun opened(): Long = handle.also { check(it != 0L) { "the session is closed" } }

    /** Throws what a status of a call with [tokens] means, where it is not OK. */
    private fun check(status: Int, tokens: Int) {
        if (status == 0) return
        val positions = state().positions
        if (status == CoreStatus.BAD_ARGUMENT.number && tokens > context - positions) {
            val what = "$tokens tokens at position $positions do not fit the context of $context."
            val hint = "Shorten the conversation, or export with a larger --context."
            throw BundleError(BundleError.Kind.CONTEXT, what, hint)
        }
        throw CoreStatus.error(status, "")
    }

    companion object : EngineOpener {
        override fun open(bundle: Bundle, options: EngineOptions): NativeSession {
            val folder = bundle.folder.path.toByteArray()
            val kind = options.kind.ordinal
            return NativeSession(Native.open(folder, options.context, options.threads, options.batchTokens, kind))
        }
    }
}
