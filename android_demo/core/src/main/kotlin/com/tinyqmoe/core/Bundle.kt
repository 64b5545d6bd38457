package com.tinyqmoe.core

import java.io.File

/** A bundle in a folder of this device. */
class Bundle private constructor(val folder: File, val manifest: Manifest) {
    val name: String get() = manifest.name

    /** A file of the bundle. */
    fun file(path: String): File = File(folder, path)

    /** The tokenizer of the bundle. Throws [BundleError] for a kind that is not known here. Takes a second for large ones. */
    fun tokenizer(): Tokenizer = TODO()

    /**
     * Compares every file that a session needs with its size and, with [hashed], its SHA-256. [progress] is told the
     * bytes that were read and those that will be. Throws [BundleError] that names all files that differ.
     */
    fun verify(hashed: Boolean = true, progress: (done: Long, total: Long) -> Unit = { _, _ -> }) {
        TODO()
    }

    companion object {
        /** The bundle in [folder]: reads its manifest and looks at the sizes of its files. Throws [BundleError]. */
        fun open(folder: File): Bundle = TODO()
    }
}
