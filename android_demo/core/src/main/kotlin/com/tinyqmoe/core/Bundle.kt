package com.tinyqmoe.core

import com.tinyqmoe.core.BundleError.Kind
import java.io.File
import java.io.IOException

/** A bundle in a folder of this device. */
class Bundle private constructor(val folder: File, val manifest: Manifest) {
    val name: String get() = manifest.name

    /** A file of the bundle. */
    fun file(path: String): File = File(folder, path)

    /**
     * The tokenizer of the bundle. Throws [BundleError] for a kind that is not known here. Takes a second for
     * large ones.
     */
    fun tokenizer(): Tokenizer {
        val file = file(Manifest.TOKENIZER)
        if (!file.isFile) {
            val what = "The bundle has no tokenizer.json: the checkpoint had no tokenizer."
            throw BundleError(Kind.TOKENIZER, what, "Put tokenizer.json beside the checkpoint and export again.")
        }
        return Tokenizer.read(file.readText())
    }

    /**
     * Compares every file that a session needs with its size and, with [hashed], its SHA-256. [progress] is told the
     * bytes that were read and those that will be. Throws [BundleError] that names all files that differ.
     */
    fun verify(hashed: Boolean = true, progress: (done: Long, total: Long) -> Unit = { _, _ -> }) {
        val total = manifest.sessionBytes
        var done = 0L
        val problems =
            manifest.sessionFiles.mapNotNull { entry ->
                val file = file(entry.path)
                when {
                    !file.isFile -> "${entry.path} is missing"
                    file.length() != entry.bytes ->
                        "${entry.path} has ${file.length()} bytes, expected ${entry.bytes}"
                    !hashed -> null
                    Hashes.of(file) { done += it; progress(done, total) } != entry.sha256 ->
                        "${entry.path} has been changed: its SHA-256 differs from the manifest's"
                    else -> null
                }
            }
        if (problems.isNotEmpty()) {
            val what = "The model $name is damaged: ${problems.joinToString("; ")}."
            throw BundleError(Kind.DAMAGED, what, "Download or copy the model again.")
        }
    }

    companion object {
        /** The bundle in [folder]: reads its manifest and looks at the sizes of its files. Throws [BundleError]. */
        fun open(folder: File): Bundle {
            val file = File(folder, Manifest.FILE)
            if (!file.isFile) {
                val what = "$folder is not a bundle: it has no manifest.json."
                throw BundleError(Kind.NO_MANIFEST, what, "Choose the folder that `tinyqmoe export` wrote.")
            }
            val text =
                try {
                    file.readText()
                } catch (error: IOException) {
                    val what = "$file cannot be read: ${error.message}."
                    throw BundleError(Kind.NO_MANIFEST, what, "Copy the model again.", error)
                }
            return Bundle(folder, Manifest.read(text)).also { it.verify(hashed = false) }
        }
    }
}
