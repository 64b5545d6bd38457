package com.tinyqmoe.engine

import com.tinyqmoe.core.BundleError
import com.tinyqmoe.core.CoreStatus

/** The calls of jni.cc. Arrays are copied. A status is a tinyqmoe_status, 0 for success; a path is in UTF-8. */
internal object Native {
    init {
        System.loadLibrary("tinyqmoe_jni")
    }

    /** A handle. Throws [BundleError]. */
    @JvmStatic external fun open(folder: ByteArray, context: Int, threads: Int, batchTokens: Int, engine: Int): Long

    @JvmStatic external fun feed(handle: Long, tokens: IntArray, logits: FloatArray?): Int

    /** The most probable token, or a status with its sign changed. */
    @JvmStatic external fun step(handle: Long, token: Int): Int

    @JvmStatic external fun trim(handle: Long, positions: Int): Int

    /** The fields of tinyqmoe_session_state after its struct_bytes. */
    @JvmStatic external fun state(handle: Long): LongArray

    @JvmStatic external fun close(handle: Long)

    @JvmStatic external fun setBudget(bytes: Long)

    @JvmStatic external fun trimResidency(bytes: Long): Long

    @JvmStatic external fun setCacheFolder(folder: ByteArray?): Int

    /** budget_bytes, dirty_bytes, file_bytes and expansions of tinyqmoe_residency_stats. */
    @JvmStatic external fun residency(): LongArray
}

/** What jni.cc throws. R8 must keep it: native/consumer-rules.pro. */
internal object NativeErrors {
    @JvmStatic fun error(status: Int, said: String): BundleError = CoreStatus.error(status, said)
}
