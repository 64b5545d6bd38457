package com.tinyqmoe.core

import com.tinyqmoe.core.BundleError.Kind
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.withContext
import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.io.InputStream
import java.security.MessageDigest
import kotlin.coroutines.coroutineContext

/** How far an import is: bytes of all files of the bundle, and the file that is read now. */
data class ImportProgress(val bytesDone: Long, val bytesTotal: Long, val file: String)

/**
 * Brings a bundle into the store: its manifest, then only the files that a session needs.
 *
 * Free space is looked at first. Each file is written to a partial folder, goes on from where it was at the next call,
 * and is compared with its size and SHA-256. The bundle appears by a rename, so one that is there is complete.
 */
class BundleImport(private val source: BundleSource, private val store: BundleStore) {
    private val folder = store.partialFolderOf(source.id)

    /**
     * Runs the import on a thread for files, and returns the bundle. Cancel it to pause; call it again to go on.
     * Throws [BundleError]; what came is kept, but for a file with a wrong SHA-256.
     */
    suspend fun run(progress: (ImportProgress) -> Unit): Bundle =
        withContext(Dispatchers.IO) {
            store.importing(source.id) {
                val manifest = prepare()
                checkSpace(manifest)
                var before = 0L
                for (entry in manifest.sessionFiles) {
                    fetch(entry) { progress(ImportProgress(before + it, manifest.sessionBytes, entry.path)) }
                    before += entry.bytes
                }
                written("bundle") {
                    File(folder, BundleStore.SOURCE).delete()
                    store.publish(source.id)
                }
                Bundle.open(store.folderOf(source.id))
            }
        }

    /** The manifest, in the partial folder. Files that came for another manifest go. */
    private fun prepare(): Manifest {
        val text = reading(Manifest.FILE) { source.open(Manifest.FILE, 0).stream.use { readManifest(it) } }
        val manifest = Manifest.read(text)
        val file = File(folder, Manifest.FILE)
        written(Manifest.FILE) {
            if (file.isFile && file.readText() != text) folder.deleteRecursively()
            AtomicFiles.write(File(folder, BundleStore.SOURCE), source.address)
            AtomicFiles.write(file, text)
        }
        return manifest
    }

    private fun readManifest(stream: InputStream): String {
        val bytes = ByteArray(MAX_MANIFEST_BYTES + 1)
        var n = 0
        while (n < bytes.size) {
            val more = stream.read(bytes, n, bytes.size - n)
            if (more < 0) break
            n += more
        }
        if (n == bytes.size) {
            throw BundleError(Kind.NO_MANIFEST, "manifest.json has more than $MAX_MANIFEST_BYTES bytes.", CHECK)
        }
        return String(bytes, 0, n, Charsets.UTF_8)
    }

    private fun checkSpace(manifest: Manifest) {
        val there = manifest.sessionFiles.sumOf { maxOf(File(folder, it.path).length(), partOf(it).length()) }
        val needed = manifest.sessionBytes - there + SPARE_BYTES
        val free = store.freeBytes()
        if (free < needed) {
            val what = "The model needs ${megabytes(needed)} MB more, and ${megabytes(free)} MB are free."
            val hint = "Delete other models or files, then try again: what has come is kept."
            throw BundleError(Kind.NO_SPACE, what, hint)
        }
    }

    /** One file, verified. [progress] is told its bytes that are there. */
    private suspend fun fetch(entry: FileEntry, progress: (Long) -> Unit) {
        val file = File(folder, entry.path)
        // It was verified before it got its name.
        if (file.isFile && file.length() == entry.bytes) return progress(entry.bytes)
        val part = partOf(entry)
        written(entry.path) { part.parentFile?.mkdirs() }
        if (part.length() > entry.bytes) part.delete()
        val digest = Hashes.sha256()
        if (part.length() == entry.bytes) hash(part, digest) else receive(entry, part, digest, progress)
        if (Hashes.hex(digest.digest()) != entry.sha256) {
            part.delete()
            val what = "${entry.path} came with other bytes: its SHA-256 is not the manifest's."
            throw BundleError(Kind.DAMAGED, what, CHECK)
        }
        written(entry.path) { if (!part.renameTo(file)) throw IOException("$file cannot be made") }
    }

    private fun hash(file: File, digest: MessageDigest) {
        val piece = ByteArray(PIECE_BYTES)
        file.inputStream().use { stream ->
            generateSequence { stream.read(piece) }.takeWhile { it >= 0 }.forEach { digest.update(piece, 0, it) }
        }
    }

    /** The rest of a file, behind what is there. */
    private suspend fun receive(entry: FileEntry, part: File, digest: MessageDigest, progress: (Long) -> Unit) {
        val opened = source.open(entry.path, part.length())
        var n = opened.offset
        opened.stream.use { stream ->
            if (n != part.length()) part.delete().also { n = 0 }
            if (n > 0) hash(part, digest)
            FileOutputStream(part, true).use { out ->
                val piece = ByteArray(PIECE_BYTES)
                while (true) {
                    coroutineContext.ensureActive()
                    val more = reading(entry.path) { stream.read(piece) }
                    if (more < 0) break
                    n += more
                    if (n > entry.bytes) break
                    written(entry.path) { out.write(piece, 0, more) }
                    digest.update(piece, 0, more)
                    progress(n)
                }
                written(entry.path) { out.fd.sync() }
            }
        }
        checkLength(entry, n)
    }

    private fun checkLength(entry: FileEntry, n: Long) {
        if (n == entry.bytes) return
        val expected = "of ${entry.bytes} bytes"
        if (n < entry.bytes) throw BundleError(Kind.NETWORK, "${entry.path} ended after $n $expected.", GO_ON)
        partOf(entry).delete()
        throw BundleError(Kind.DAMAGED, "${entry.path} has more bytes than the manifest says, $expected.", CHECK)
    }

    private fun partOf(entry: FileEntry) = File(folder, "${entry.path}.part")

    private fun <T> reading(path: String, read: () -> T): T =
        try {
            read()
        } catch (error: IOException) {
            throw BundleError(Kind.NETWORK, "$path did not come: ${error.message}.", GO_ON, error)
        }

    private fun written(path: String, write: () -> Unit) =
        try {
            write()
        } catch (error: IOException) {
            val hint = "Make room on the storage, then try again: what has come is kept."
            throw BundleError(Kind.NO_SPACE, "$path cannot be written: ${error.message}.", hint, error)
        }

    private fun megabytes(bytes: Long) = (bytes + 999_999) / 1_000_000

    private companion object {
        const val PIECE_BYTES = 1 shl 16
        const val MAX_MANIFEST_BYTES = 32_000_000
        const val SPARE_BYTES = 16_000_000L
        const val GO_ON = "What has come is kept. Try again to go on from there."
        const val CHECK = "Try again; if it happens again, the files at the source are not whole."
    }
}
