package com.tinyqmoe.engine

import com.tinyqmoe.core.Bundle
import com.tinyqmoe.core.BundleError
import com.tinyqmoe.core.EngineKind
import com.tinyqmoe.core.EngineOptions
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File
import java.io.RandomAccessFile
import kotlin.concurrent.thread

/** What the core refuses, in words; and what other threads may do while it computes. */
class NativeErrorsTest {
    private fun copied(name: String): Bundle {
        val folder = File.createTempFile("tinyqmoe", name).apply { delete() }
        RealModel.demo.bundle.folder.copyRecursively(folder)
        Runtime.getRuntime().addShutdownHook(Thread { folder.deleteRecursively() })
        return Bundle.open(folder)
    }

    private fun open(bundle: Bundle = RealModel.demo.bundle, options: EngineOptions = EngineOptions()) =
        NativeSession.open(bundle, options)

    private fun error(kind: BundleError.Kind, vararg words: String, call: () -> Unit) {
        val error = assertThrows(BundleError::class.java) { call() }
        assertEquals(error.words, kind, error.kind)
        for (word in words) assertTrue("$word: ${error.words}", word in error.words)
    }

    @Test
    fun missingAndDamagedFilesHaveWords() {
        open(copied("-é🪁")).use { assertEquals(0, it.state().positions) }
        val missing = copied("-missing")
        missing.file("model.pte").delete()
        error(BundleError.Kind.CORE, "does not lie in a file of the bundle", "copy the model again") { open(missing) }
        error(BundleError.Kind.DAMAGED, "model.pte is missing") { Bundle.open(missing.folder) }
        val damaged = copied("-damaged")
        RandomAccessFile(damaged.file("model.pte"), "rw").use { file ->
            val at = file.length() / 2
            for (i in 0 until 100_000L step 64) { file.seek(at + i); file.write(0xff) }
            for (i in 0 until file.length() / 2 step 32) { file.seek(i); file.write(0x5a) }
        }
        error(BundleError.Kind.CORE) { open(damaged) }
        error(BundleError.Kind.DAMAGED, "SHA-256") { damaged.verify() }
        val short = copied("-short")
        RandomAccessFile(short.file("model.pte"), "rw").use { it.setLength(1000) }
        error(BundleError.Kind.CORE) { open(short) }
        val torn = copied("-torn")
        torn.file("manifest.json").writeText("{")
        error(BundleError.Kind.CORE, "manifest.json") { open(torn) }
    }

    @Test
    fun wrongCallsHaveWordsAndAddNothing() {
        open().use { engine ->
            engine.feed(intArrayOf(5, 6, 7))
            error(BundleError.Kind.CORE, "BAD_ID") { engine.feed(intArrayOf(8, 1 shl 20)) }
            error(BundleError.Kind.CORE, "BAD_ID") { engine.step(-1) }
            error(BundleError.Kind.CORE, "BAD_ARGUMENT") { engine.feed(intArrayOf()) }
            error(BundleError.Kind.CORE, "BAD_ARGUMENT") { engine.trim(4) }
            error(BundleError.Kind.CONTEXT, "128") { engine.feed(IntArray(126) { 5 }) }
            assertThrows(IllegalArgumentException::class.java) { engine.feed(intArrayOf(5), FloatArray(3)) }
            assertEquals(3, engine.state().positions)
        }
        error(BundleError.Kind.CORE) { open(options = EngineOptions(context = 1 shl 24)) }
        val program = EngineOptions(threads = 1, kind = EngineKind.EXECUTORCH)
        error(BundleError.Kind.CORE, "with ExecuTorch", "must be 0") { open(options = program) }
    }

    @Test
    fun aClosedSessionIsRefused() {
        val engine = open()
        engine.close()
        engine.close()
        for (call in listOf({ engine.feed(intArrayOf(5)) }, { engine.trim(0) }, { engine.state(); Unit })) {
            assertThrows(IllegalStateException::class.java) { call() }
        }
    }

    @Test
    fun optionsAreTaken() {
        open(options = EngineOptions(context = 64, threads = 2, batchTokens = 16)).use { engine ->
            assertEquals(64 to 2, engine.state().let { it.context to it.threads })
            error(BundleError.Kind.CONTEXT, "64") { engine.feed(IntArray(65) { 5 }) }
        }
    }

    /** The demo model in int8 has raw levels, which do not expand: what is looked at is that no token changes. */
    @Test
    fun trimmingWhileTokensComeChangesNoBit() {
        val expected = tokens(open())
        NativeResidency.setBudget(Long.MAX_VALUE)
        val engine = open()
        var stop = false
        val warnings =
            thread {
                while (!stop) {
                    NativeResidency.trim(Long.MAX_VALUE)
                    NativeResidency.setBudget(Long.MAX_VALUE)
                    System.gc()
                }
            }
        val got = tokens(engine)
        stop = true
        warnings.join()
        NativeResidency.setBudget(0)
        NativeResidency.trim(Long.MAX_VALUE)
        assertEquals(expected, got)
        assertEquals(0, NativeResidency.state().dirtyBytes)
    }

    private fun tokens(engine: NativeSession): List<Int> =
        engine.use {
            it.feed(intArrayOf(0, 2, 424, 287))
            generateSequence(it.step(264)) { token -> it.step(token) }.take(80).toList()
        }

    @Test
    fun theCacheFolderMustBeThere() {
        val folder = File.createTempFile("tinyqmoe", "cache").apply { delete() }.apply { mkdirs() }
        NativeResidency.setCacheFolder(folder)
        NativeResidency.setCacheFolder(null)
        folder.deleteRecursively()
        error(BundleError.Kind.CORE, "no folder") { NativeResidency.setCacheFolder(File("x".repeat(2000))) }
    }
}
