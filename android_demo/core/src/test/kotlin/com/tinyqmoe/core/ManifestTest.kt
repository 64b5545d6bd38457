package com.tinyqmoe.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

class ManifestTest {
    private val table = Project.table("manifest.tsv")

    private fun text(row: Map<String, String>) = File(Project.golden, row.getValue("file")).readText()

    @Test
    fun goodOnesAreRead() {
        val good = table.filter { it["kind"] == "ok" }
        assertTrue(good.size >= 2)
        for (row in good) {
            val manifest = Manifest.read(text(row))
            assertEquals("Kite-ß 🪁", manifest.name)
            assertEquals(ModelInterface(512, 1024, BosRule.TOKENIZER, 0, setOf(1, 4)), manifest.model)
            assertEquals(NetworkSizes(32, 96, 1, 4, 2, 8), manifest.network)
            assertEquals("int16", manifest.sessionPackage.activations)
            assertEquals(KvType.FLOAT16, manifest.sessionPackage.kvType)
            assertEquals(655360, manifest.sessionPackage.kvCacheBytes)
            assertEquals(listOf("model.pte", "reference.safetensors", "tokenizer.json"), manifest.sessionFiles.map { it.path })
            assertEquals(manifest.files[0].bytes + 3400, manifest.sessionBytes)
            assertEquals(listOf("It is small."), manifest.warnings)
            assertEquals("no system prompt", manifest.chatProblem)
            assertEquals(false, manifest.chat?.hasSystem)
        }
    }

    @Test
    fun editedOnesAreRefusedInWords() {
        val edited = table.filter { it["kind"] != "ok" }
        assertTrue(edited.size >= 20)
        for (row in edited) {
            val kind = BundleError.Kind.valueOf(row.getValue("kind").uppercase())
            val names = listOf(row.getValue("names")).filter { it != "-" }.toTypedArray()
            val error = refused(kind, *names) { Manifest.read(text(row)) }
            assertTrue(error.hint.endsWith("."))
        }
    }

    @Test
    fun allProblemsAreNamedAtOnce() {
        val content = Project.json("manifest/good.json").map() - "sha256" - "files" - "network"
        val sorted = content.toSortedMap(compareBy { it as String })
        val digest = Hashes.of(Json.write(deepSorted(sorted)))
        refused(BundleError.Kind.INVALID, "files is missing", "network is missing") { Manifest.read(Json.write(content + ("sha256" to digest))) }
    }

    private fun deepSorted(value: Any?): Any? =
        when (value) {
            is Map<*, *> -> value.entries.sortedBy { it.key as String }.associate { it.key to deepSorted(it.value) }
            is List<*> -> value.map(::deepSorted)
            else -> value
        }

    @Test
    fun theForecastCountsWhatASessionHolds() {
        val manifest = Manifest.read(text(table[0]))
        val ample = MemoryForecast(manifest, 100_000_000)
        assertTrue(ample.fits && ample.fitsWithWeights)
        assertEquals(manifest.files[0].bytes, ample.cleanBytes)
        assertEquals(655360, ample.kvCacheBytes)
        assertTrue(ample.words, "fits" in ample.words)
        val tight = MemoryForecast(manifest, ample.dirtyBytes)
        assertTrue(tight.fits && !tight.fitsWithWeights)
        assertTrue(tight.words, "slow" in tight.words)
        val small = MemoryForecast(manifest, ample.dirtyBytes - 1)
        assertTrue(!small.fits)
        assertTrue(small.words, "does not fit" in small.words)
    }

    @Test
    fun everyStatusOfTheCoreHasWords() {
        val header = File(Project.root, "exporter/native/include/tinyqmoe/tinyqmoe.h").readText()
        val inHeader = Regex("TINYQMOE_([A-Z_]+) = ([0-9]+)[,\\s]").findAll(header.substringAfter("enum tinyqmoe_status").substringBefore("}"))
            .associate { it.groupValues[1] to it.groupValues[2].toInt() } - "OK"
        assertTrue(inHeader.size > 20)
        assertEquals(inHeader, CoreStatus.entries.associate { it.name to it.number })
        val error = CoreStatus.error(65, "")
        assertTrue(error.words, "memory" in error.words && "OUT_OF_MEMORY 65" in error.words)
        assertTrue("status 99" in CoreStatus.error(99, "x").words)
        assertNull(CoreStatus.error(1, "").cause)
    }
}
