package com.tinyqmoe.core

import java.io.File
import java.security.MessageDigest

/** SHA-256 as hex digits. */
internal object Hashes {
    fun sha256(): MessageDigest = MessageDigest.getInstance("SHA-256")

    fun hex(digest: ByteArray): String = digest.joinToString("") { "%02x".format(it) }

    fun of(text: String): String = hex(sha256().digest(text.toByteArray()))

    /** Of a file, read in pieces; [read] is told the bytes of each. */
    fun of(file: File, read: (Int) -> Unit = {}): String {
        val digest = sha256()
        file.inputStream().use { stream ->
            val piece = ByteArray(1 shl 18)
            while (true) {
                val n = stream.read(piece)
                if (n < 0) break
                digest.update(piece, 0, n)
                read(n)
            }
        }
        return hex(digest.digest())
    }
}
