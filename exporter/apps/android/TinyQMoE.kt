package com.tinyqmoe

import java.io.Closeable
import java.io.IOException

/** The calls of tinyqmoe_jni.cc. */
internal object TinyQMoE {
    init {
        System.loadLibrary("tinyqmoe_jni")
    }

    @JvmStatic external fun open(bundle: String, threads: Int, verify: Boolean): Long
    @JvmStatic external fun feed(handle: Long, tokens: IntArray): FloatArray
    @JvmStatic external fun rewind(handle: Long, positions: Int)
    @JvmStatic external fun freeMemory(bytes: Long): Long
    @JvmStatic external fun close(handle: Long)
}

/**
 * A bundle that is open for text. It serves one thread at a time, and never the main thread: a prompt takes seconds.
 *
 * @param folder the bundle's folder in the app's own files
 * @param threads 0: as many as the device has cores
 * @param verify compares size and SHA-256 of the package's files first: for the first time after a download
 * @throws IOException in words, where a file is missing, was changed or does not fit
 */
class Session(folder: String, threads: Int = 0, verify: Boolean = false) : Closeable {
    private var handle = TinyQMoE.open(folder, threads, verify)

    /** Appends tokens, and returns the logits after the last of them. */
    fun feed(tokens: IntArray): FloatArray = TinyQMoE.feed(handle, tokens)

    /** Greedy tokens after a prompt, until `isEnd` says so of one, or the caller stops asking. */
    fun greedy(prompt: IntArray, isEnd: (Int) -> Boolean): Sequence<Int> = sequence {
        var logits = feed(prompt)
        while (true) {
            val best = logits.indices.maxBy { logits[it] }
            if (isEnd(best)) return@sequence
            yield(best)
            logits = feed(intArrayOf(best))
        }
    }

    /** Forgets all positions from `positions` on: to say a turn again, or with 0 to begin anew. */
    fun rewind(positions: Int) = TinyQMoE.rewind(handle, positions)

    override fun close() {
        TinyQMoE.close(handle)
        handle = 0
    }

    companion object {
        /** For onTrimMemory, from any thread, also while a session computes. Returns the bytes that were freed. */
        fun freeMemory(bytes: Long = Long.MAX_VALUE): Long = TinyQMoE.freeMemory(bytes)
    }
}
