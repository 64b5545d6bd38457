package com.tinyqmoe.core

import java.io.Closeable
import java.io.File

/** What an engine holds and has done; see tinyqmoe_session_state in session.h. Times in nanoseconds. */
data class EngineState(
    val positions: Int,
    val context: Int,
    val vocab: Int,
    val threads: Int,
    val mappedBytes: Long,
    val kvCacheBytes: Long,
    val bufferBytes: Long,
    val fedTokens: Long,
    val feedNanos: Long,
)

/** What computes, in the order of tinyqmoe_engine: both have the same bits. */
enum class EngineKind {
    /** The core's own runner, which needs nothing. */
    RUNNER,

    /** The program itself, where the native library was linked with ExecuTorch. [EngineOptions.context] and threads are 0. */
    EXECUTORCH,
}

/**
 * Options of an engine; 0 is the default of each number. [context]: positions; [threads]: a number; [batchTokens]: at
 * once.
 */
data class EngineOptions(
    val context: Int = 0,
    val threads: Int = 0,
    val batchTokens: Int = 0,
    val kind: EngineKind = EngineKind.RUNNER,
)

/**
 * A model that turns tokens into logits, and remembers what it was fed: session.h. For one thread at a time.
 *
 * All calls throw [BundleError] (CORE or CONTEXT); then no position was added.
 */
interface Engine : Closeable {
    /** Appends tokens. [logits], float [vocab], gets those after the last of them, where it is given. */
    fun feed(tokens: IntArray, logits: FloatArray? = null)

    /** Appends one token, and returns the most probable next one. */
    fun step(token: Int): Int

    /** Forgets all positions from [positions] on. */
    fun trim(positions: Int)

    fun state(): EngineState

    /** Gives all memory back. More calls do no harm. */
    override fun close()
}

/**
 * Opens an engine on a bundle (`NativeSession`). Takes seconds at most.
 */
fun interface EngineOpener {
    /** Throws [BundleError]. */
    fun open(bundle: Bundle, options: EngineOptions): Engine
}

/** What the expanded weights of this process take, in bytes; see tinyqmoe_residency_stats. */
data class ResidencyState(val budgetBytes: Long, val dirtyBytes: Long, val fileBytes: Long, val expansions: Long)

/**
 * Where the weights lie, for all engines of this process: any thread may call it, also while an engine computes.
 */
interface Residency {
    /** Memory that expanded weights may take, in bytes. 0: none, which is the default. */
    fun setBudget(bytes: Long)

    /** Frees expanded weights of at least [bytes], for good. Returns the bytes that they had. */
    fun trim(bytes: Long): Long

    /** The folder for expanded weights that the budget does not hold, which are then mapped; null: none. */
    fun setCacheFolder(folder: File?)

    fun state(): ResidencyState
}
