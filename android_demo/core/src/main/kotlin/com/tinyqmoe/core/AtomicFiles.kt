package com.tinyqmoe.core

import java.io.File
import java.io.FileOutputStream
import java.nio.file.Files
import java.nio.file.StandardCopyOption.ATOMIC_MOVE

/** Files that are written whole or not at all. */
internal object AtomicFiles {
    /** Replaces [file] by [text], which is on the disk when this returns. Throws IOException. */
    fun write(file: File, text: String) {
        file.absoluteFile.parentFile.mkdirs()
        val partial = File(file.absoluteFile.parentFile, ".${file.name}.partial")
        FileOutputStream(partial).use { out ->
            out.write(text.toByteArray())
            out.fd.sync()
        }
        Files.move(partial.toPath(), file.toPath(), ATOMIC_MOVE)
    }
}
