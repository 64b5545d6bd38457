package com.tinyqmoe.core

import java.io.File

/**
 * A bundle of the store. [id] is the name of its folder.
 *
 * @property problem words of what is wrong with it, or null; then [bundle] is there.
 */
class StoredBundle(val id: String, val bundle: Bundle?, val problem: BundleError?, val bytes: Long)

/** A download that was paused or broken: it goes on with [BundleImport]. [source] is null for files that were picked. */
data class PartialImport(val id: String, val source: String?, val bytesDone: Long, val bytesTotal: Long?)

/** The bundles on this device: one folder each, in [folder]. */
class BundleStore(val folder: File) {
    /** All bundles, by name. A damaged one is listed with its problem. */
    fun list(): List<StoredBundle> = TODO()

    /** Imports that are not complete. */
    fun partial(): List<PartialImport> = TODO()

    /** The folder that the bundle [id] has or will have. */
    fun folderOf(id: String): File = TODO()

    /** Deletes a bundle, or an import that is not complete. Files go after the name, so that no half of it is left. */
    fun delete(id: String) {
        TODO()
    }

    /** Bytes that are free on the storage of the store. */
    fun freeBytes(): Long = TODO()
}
