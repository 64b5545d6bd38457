package com.tinyqmoe.engine

import com.tinyqmoe.core.Bundle
import com.tinyqmoe.core.CoreStatus
import com.tinyqmoe.core.Engine
import com.tinyqmoe.core.EngineOpener
import com.tinyqmoe.core.EngineOptions
import com.tinyqmoe.core.EngineState
import com.tinyqmoe.core.Residency
import com.tinyqmoe.core.ResidencyState
import java.io.File

/** The calls of jni.cc. Arrays are copied; a status is a tinyqmoe_status, 0 for success. */
internal object Native {
    init {
        System.loadLibrary("tinyqmoe_jni")
    }

    /** A handle. Throws [com.tinyqmoe.core.BundleError]. */
    @JvmStatic external fun open(folder: String, context: Int, threads: Int, batchTokens: Int): Long

    @JvmStatic external fun feed(handle: Long, tokens: IntArray, logits: FloatArray?): Int

    /** The most probable token, or a status below 0. */
    @JvmStatic external fun step(handle: Long, token: Int): Int

    @JvmStatic external fun trim(handle: Long, positions: Int): Int

    /** The fields of tinyqmoe_session_state after its struct_bytes. */
    @JvmStatic external fun state(handle: Long): LongArray

    @JvmStatic external fun close(handle: Long)

    @JvmStatic external fun setBudget(bytes: Long)

    @JvmStatic external fun trimResidency(bytes: Long): Long

    @JvmStatic external fun setCacheFolder(folder: String?): Int

    /** budget_bytes, dirty_bytes, file_bytes, expansions of tinyqmoe_residency_stats. */
    @JvmStatic external fun residency(): LongArray
}

/** An engine of the core's own runner (exporter/native/include/tinyqmoe/session.h). */
class NativeSession private constructor(private var handle: Long) : Engine {
    override fun feed(tokens: IntArray, logits: FloatArray?) = check(Native.feed(opened(), tokens, logits))

    override fun step(token: Int): Int {
        val best = Native.step(opened(), token)
        if (best < 0) check(-best)
        return best
    }

    override fun trim(positions: Int) = check(Native.trim(opened(), positions))

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

    private fun check(status: Int) {
        if (status != 0) throw CoreStatus.error(status, "")
    }

    companion object : EngineOpener {
        override fun open(bundle: Bundle, options: EngineOptions): NativeSession =
            NativeSession(Native.open(bundle.folder.path, options.context, options.threads, options.batchTokens))
    }
}

/** The residency of the core, which all sessions of this process share. */
object NativeResidency : Residency {
    override fun setBudget(bytes: Long) = Native.setBudget(bytes)

    override fun trim(bytes: Long): Long = Native.trimResidency(bytes)

    override fun setCacheFolder(folder: File?) {
        val status = Native.setCacheFolder(folder?.path)
        if (status != 0) throw CoreStatus.error(status, "$folder")
    }

    override fun state(): ResidencyState {
        val s = Native.residency()
        return ResidencyState(s[0], s[1], s[2], s[3])
    }
}
