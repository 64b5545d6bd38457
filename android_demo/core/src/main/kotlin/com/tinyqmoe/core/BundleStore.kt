package com.tinyqmoe.core

import java.io.File
import java.io.IOException
import java.util.concurrent.ConcurrentHashMap

/**
 * A bundle of the store. [id] is the name of its folder.
 *
 * @property problem words of what is wrong with it, or null; then [bundle] is there.
 */
class StoredBundle(val id: String, val bundle: Bundle?, val problem: BundleError?, val bytes: Long)

/** A download that was paused or broken: it goes on with [BundleImport] from the same [source]. */
data class PartialImport(val id: String, val source: String, val bytesDone: Long, val bytesTotal: Long?)

/** The bundles on this device: one folder each, in [folder]. Names that begin with a dot are the store's own. */
class BundleStore(val folder: File) {
    private val running = ConcurrentHashMap.newKeySet<String>()

    /** All bundles, by name. A damaged one is listed with its problem. */
    fun list(): List<StoredBundle> =
        folders { !it.startsWith(".") }.map { file ->
            try {
                StoredBundle(file.name, Bundle.open(file), null, bytesIn(file))
            } catch (error: BundleError) {
                StoredBundle(file.name, null, error, bytesIn(file))
            }
        }

    /** Imports that are not complete. */
    fun partial(): List<PartialImport> =
        folders { it.startsWith(".") && it.endsWith(PARTIAL) }.map { file ->
            val id = file.name.removePrefix(".").removeSuffix(PARTIAL)
            val source = File(file, SOURCE).takeIf { it.isFile }?.readText().orEmpty()
            val done = bytesIn(file) - File(file, SOURCE).length() - File(file, Manifest.FILE).length()
            PartialImport(id, source, done, total(file))
        }

    /** The folder that the bundle [id] has or will have. Throws IllegalArgumentException for what is no [isId]. */
    fun folderOf(id: String): File {
        require(isId(id)) { "\"$id\" is no name of a folder." }
        return File(folder, id)
    }

    /**
     * Deletes a bundle, or an import that is not complete. It loses its name first, so that no half of a bundle
     * is seen. A bundle that is open stays usable until its session is closed.
     */
    fun delete(id: String) {
        for (file in listOf(folderOf(id), partialFolderOf(id))) {
            val gone = File(folder, ".${id}${DELETED}")
            gone.deleteRecursively()
            if (file.exists() && !file.renameTo(gone)) throw IOException("$file cannot be deleted")
            gone.deleteRecursively()
        }
    }

    /** Bytes that are free on the storage of the store. */
    fun freeBytes(): Long {
        folder.mkdirs()
        return folder.usableSpace
    }

    internal fun partialFolderOf(id: String): File = File(folder, ".${folderOf(id).name}$PARTIAL")

    /** Runs an import of a bundle, of which there is one at a time. Throws [BundleError] (BUSY). */
    internal inline fun <T> importing(id: String, run: () -> T): T {
        if (!running.add(id)) {
            val what = "The model $id is being imported already."
            throw BundleError(BundleError.Kind.BUSY, what, "Wait until it is there.")
        }
        try {
            return run()
        } finally {
            running.remove(id)
        }
    }

    /** Gives a complete partial folder its name, in the place of a bundle that has it. */
    internal fun publish(id: String) {
        val there = folderOf(id)
        val old = File(folder, ".$id$DELETED")
        old.deleteRecursively()
        if (there.exists() && !there.renameTo(old)) throw IOException("$there cannot be replaced")
        if (!partialFolderOf(id).renameTo(there)) throw IOException("$there cannot be made")
        old.deleteRecursively()
    }

    private fun total(partial: File): Long? =
        try {
            Manifest.read(File(partial, Manifest.FILE).readText()).sessionBytes
        } catch (error: BundleError) {
            null
        } catch (error: IOException) {
            null
        }

    private fun folders(named: (String) -> Boolean): List<File> =
        folder.listFiles { file -> file.isDirectory && named(file.name) }.orEmpty().sortedBy { it.name }

    private fun bytesIn(file: File): Long = file.walkTopDown().filter { it.isFile }.sumOf { it.length() }

    companion object {
        internal const val SOURCE = "source"
        private const val PARTIAL = ".partial"
        private const val DELETED = ".deleted"

        /** Whether a text can be the id of a bundle: letters, digits, dots, dashes and underscores, no dot first. */
        fun isId(text: String): Boolean = Regex("[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}").matches(text)
    }
}
