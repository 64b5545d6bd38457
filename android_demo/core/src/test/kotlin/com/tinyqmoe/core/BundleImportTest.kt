package com.tinyqmoe.core

import com.sun.net.httpserver.HttpExchange
import com.sun.net.httpserver.HttpServer
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.After
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File
import java.net.InetSocketAddress

class BundleImportTest {
    private val scratch = scratch("import")
    private val made = MadeBundle(File(scratch, "source/Kite"))
    private val store = BundleStore(File(scratch, "store"))
    private val server = HttpServer.create(InetSocketAddress("127.0.0.1", 0), 0)
    private val asked = ArrayList<String>()

    /** Bytes after which the connection of a file breaks, by its name. */
    private val breaks = HashMap<String, Int>()
    private var knowsRange = true
    private val address get() = "http://127.0.0.1:${server.address.port}/Kite"

    init {
        server.createContext("/") { exchange -> exchange.use { answer(it) } }
        server.executor = java.util.concurrent.Executors.newCachedThreadPool()
        server.start()
    }

    private fun answer(exchange: HttpExchange) {
        val name = exchange.requestURI.path.removePrefix("/Kite/")
        val range = exchange.requestHeaders.getFirst("Range")
        synchronized(asked) { asked += if (range == null) name else "$name $range" }
        val file = File(made.folder, name)
        if (!file.isFile) return exchange.sendResponseHeaders(404, -1)
        val bytes = file.readBytes()
        val begin = if (knowsRange && range != null) range.removePrefix("bytes=").removeSuffix("-").toInt() else 0
        if (begin > 0) exchange.responseHeaders.add("Content-Range", "bytes $begin-${bytes.size - 1}/${bytes.size}")
        exchange.sendResponseHeaders(if (begin > 0) 206 else 200, (bytes.size - begin).toLong())
        val end = breaks[name]?.let { minOf(bytes.size, begin + it) } ?: bytes.size
        exchange.responseBody.write(bytes, begin, end - begin)
        exchange.responseBody.flush()
    }

    @After
    fun stop() = server.stop(0)

    private fun run(progress: (ImportProgress) -> Unit = {}): Bundle =
        runBlocking { BundleImport(HttpSource(address), store).run(progress) }

    @Test
    fun onlyWhatASessionNeedsComes() {
        val seen = ArrayList<ImportProgress>()
        val bundle = run { seen += it }
        assertEquals(setOf("manifest.json", "model.pte", "reference.safetensors", "tokenizer.json"), asked.toSet())
        assertEquals(asked.toSet(), bundle.folder.list()!!.toSet())
        assertArrayEquals(made.weights, bundle.file("model.pte").readBytes())
        bundle.verify()
        assertEquals(bundle.manifest.sessionBytes, seen.last().bytesDone)
        assertTrue(seen.all { it.bytesDone <= it.bytesTotal } && seen.zipWithNext().all { (a, b) -> a.bytesDone <= b.bytesDone })
        assertEquals(listOf("Kite"), store.list().map { it.id })
        assertEquals(emptyList<PartialImport>(), store.partial())
    }

    @Test
    fun aBrokenDownloadGoesOnWhereItWas() {
        breaks["model.pte"] = 100_000
        refused(BundleError.Kind.NETWORK, "model.pte", "kept") { run() }
        assertEquals(emptyList<StoredBundle>(), store.list())
        val partial = store.partial().single()
        assertEquals(address, partial.source)
        assertEquals(301_002L, partial.bytesTotal)
        val there = partial.bytesDone
        assertTrue("$there", there in 1..100_000)
        asked.clear()
        refused(BundleError.Kind.NETWORK) { run() }
        assertTrue("$asked", asked.any { it == "model.pte bytes=$there-" })
        breaks.clear()
        assertArrayEquals(made.weights, run().file("model.pte").readBytes())
    }

    @Test
    fun aServerWithoutRangeBeginsAnew() {
        breaks["model.pte"] = 100_000
        refused(BundleError.Kind.NETWORK) { run() }
        knowsRange = false
        breaks.clear()
        assertArrayEquals(made.weights, run().file("model.pte").readBytes())
    }

    @Test
    fun aPauseKeepsWhatCame() {
        runBlocking {
            val import = BundleImport(HttpSource(address), store)
            launch { import.run { if (it.bytesDone > 70_000) throw CancellationException("pause") } }.join()
        }
        val partial = store.partial().single()
        assertTrue("${partial.bytesDone}", partial.bytesDone in 70_000..250_000)
        asked.clear()
        run().verify()
        assertTrue("$asked", asked.any { it.startsWith("model.pte bytes=") })
    }

    @Test
    fun otherBytesAreRefusedAndGone() {
        File(made.folder, "model.pte").writeBytes(made.weights.clone().also { it[1000] = (it[1000] + 1).toByte() })
        refused(BundleError.Kind.DAMAGED, "model.pte", "SHA-256") { run() }
        assertEquals(0, store.partial().single().bytesDone)
        File(made.folder, "model.pte").writeBytes(made.weights)
        run().verify()
    }

    @Test
    fun longerFilesAreRefused() {
        File(made.folder, "model.pte").appendBytes(ByteArray(1))
        refused(BundleError.Kind.DAMAGED, "model.pte", "more bytes") { run() }
    }

    @Test
    fun filesOfAnotherManifestGo() {
        breaks["reference.safetensors"] = 10
        refused(BundleError.Kind.NETWORK) { run() }
        breaks.clear()
        MadeBundle(made.folder).let { it.writeManifest(sizes(it) + ("unused.txt" to (11L to "00"))) }
        asked.clear()
        run().verify()
        assertTrue("$asked", "model.pte" in asked)
    }

    private fun sizes(bundle: MadeBundle) =
        bundle.folder.listFiles()!!.filter { it.name != Manifest.FILE }.associate { it.name to (it.length() to Hashes.of(it)) }

    @Test
    fun aModelThatDoesNotFitTheStorageIsRefusedBefore() {
        made.writeManifest(sizes(made) + ("model.pte" to (1L shl 60 to "00")))
        refused(BundleError.Kind.NO_SPACE, "free") { run() }
        assertEquals(listOf("manifest.json"), asked)
    }

    @Test
    fun aMissingServerOrFileHasWords() {
        File(made.folder, "tokenizer.json").delete()
        refused(BundleError.Kind.NETWORK, "tokenizer.json", "404") { run() }
        server.stop(0)
        refused(BundleError.Kind.NETWORK) { run() }
        for (wrong in listOf("kite", "file:///kite", "ftp://kite")) {
            refused(BundleError.Kind.NETWORK, "https://") { HttpSource(wrong, "kite").open("manifest.json", 0) }
        }
    }

    @Test
    fun aBundleThatIsThereIsReplacedWhole() {
        run()
        val partial = store.partialFolderOf("Kite")
        breaks["model.pte"] = 10
        refused(BundleError.Kind.NETWORK) { run() }
        assertTrue(partial.isDirectory)
        store.list().single().bundle!!.verify()
        breaks.clear()
        run().verify()
        assertFalse(partial.exists())
    }

    @Test
    fun filesThatWerePickedComeTooAndGoOn() {
        fun source(weights: ByteArray) =
            PickedSource("folder", "picked") { path ->
                if (path == "model.pte") weights.inputStream() else File(made.folder, path).takeIf { it.isFile }?.inputStream()
            }
        val cut = made.weights.copyOf(1234)
        refused(BundleError.Kind.NETWORK, "model.pte") { runBlocking { BundleImport(source(cut), store).run {} } }
        assertEquals(1234, store.partial().single().bytesDone)
        runBlocking { BundleImport(source(made.weights), store).run {} }.verify()
        File(made.folder, "tokenizer.json").delete()
        refused(BundleError.Kind.DAMAGED, "tokenizer.json") { runBlocking { BundleImport(source(made.weights), store).run {} } }
    }

    @Test
    fun twoImportsOfOneModelDoNoHarm(): Unit =
        runBlocking {
            val kinds = List(2) { async { kindOfFailure { BundleImport(HttpSource(address), store).run {} } } }.awaitAll()
            assertTrue("$kinds", null in kinds && kinds.all { it == null || it == BundleError.Kind.BUSY })
            store.list().single().bundle!!.verify()
            refused(BundleError.Kind.BUSY, "Kite") { store.importing("Kite") { store.importing("Kite") {} } }
        }

    private suspend fun kindOfFailure(work: suspend () -> Unit): BundleError.Kind? =
        try {
            work()
            null
        } catch (error: BundleError) {
            error.kind
        }

    @Test
    fun deletingTakesBundleAndPart() {
        run()
        breaks["model.pte"] = 10
        refused(BundleError.Kind.NETWORK) { run() }
        store.delete("Kite")
        assertEquals(emptyList<String>(), store.folder.list()!!.toList())
        for (wrong in listOf("", "..", "a/b", ".hidden")) assertFalse(BundleStore.isId(wrong))
        assertEquals("my_model.v1", BundleSource.idOf("https://host/a/my model.v1/"))
        assertEquals("model", BundleSource.idOf("https://host/.../"))
    }
}
