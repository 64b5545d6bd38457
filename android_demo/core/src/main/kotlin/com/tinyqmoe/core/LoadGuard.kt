package com.tinyqmoe.core

import java.io.File

/**
 * The load-finished flag: a model whose load ended the app is not loaded by itself at the next start.
 *
 * [begin] writes the name of a bundle to [file], and [finished] removes it. What is still there when the app starts is
 * the name of the bundle whose load did not end.
 */
class LoadGuard(private val file: File) {
    /** The bundle whose load was begun by an earlier run of the app and did not end, or null. */
    val crashedLast: String? = if (file.isFile) file.readText() else null

    /** Call before a load, with the id of the bundle. It is on the disk when this returns. */
    fun begin(id: String) {
        AtomicFiles.write(file, id)
    }

    /** Call when the first token was computed, or when the load failed with an error in words. */
    fun finished() {
        file.delete()
    }
}
