package com.tinyqmoe.core

import java.io.InputStream

/** How far an import is: bytes of all files of the bundle, and the file that is read now. */
data class ImportProgress(val bytesDone: Long, val bytesTotal: Long, val file: String)

/** Where a bundle comes from. */
interface BundleSource {
    /** A name that stays the same, to find a partial import again: an address or a folder. */
    val address: String

    /** A name for the bundle's folder, of letters, digits, dots, dashes and underscores. */
    val id: String

    /**
     * The bytes of a file from [offset] on. Throws [BundleError] (NETWORK or DAMAGED). [Opened.offset] is 0 where the
     * source cannot begin elsewhere.
     */
    fun open(path: String, offset: Long): Opened

    /** An open file that begins at [offset] of it. */
    class Opened(val stream: InputStream, val offset: Long)
}

/** A bundle at a web address: the folder that has manifest.json. Resumes with HTTP's Range. */
class HttpSource(override val address: String, override val id: String = idOf(address)) : BundleSource {
    override fun open(path: String, offset: Long): BundleSource.Opened = TODO()

    companion object {
        /** The last part of an address, as a name of a folder. */
        fun idOf(address: String): String = TODO()
    }
}

/**
 * Files that the user picked. [openFile] opens one by its path in the bundle, and returns null where it is not there: on
 * Android a document of the system's picker.
 */
class PickedSource(
    override val address: String,
    override val id: String,
    private val openFile: (path: String) -> InputStream?,
) : BundleSource {
    override fun open(path: String, offset: Long): BundleSource.Opened = TODO()
}

/**
 * Brings a bundle into the store: its manifest, then only the files that a session needs.
 *
 * Free space is looked at first. Each file is written to a partial folder, goes on from where it was at the next call,
 * and is compared with its size and SHA-256. The bundle appears by a rename, so one that is there is complete.
 */
class BundleImport(private val source: BundleSource, private val store: BundleStore) {
    /**
     * Runs the import on a thread of its own choice, and returns the bundle. Cancel it to pause; call it again to go on.
     * Throws [BundleError]; what came is kept, but for a file with a wrong SHA-256.
     */
    suspend fun run(progress: (ImportProgress) -> Unit): Bundle = TODO()
}
