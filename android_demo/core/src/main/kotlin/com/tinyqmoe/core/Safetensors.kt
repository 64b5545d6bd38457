package com.tinyqmoe.core

import java.io.Closeable
import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * A reader of a safetensors file: eight bytes of length, a JSON header, little-endian values. One tensor is read at a
 * time. Throws [BundleError] (DAMAGED) for a file that is none.
 */
internal class Safetensors(private val file: File) : Closeable {
    private class Entry(val type: String, val shape: List<Int>, val begin: Long, val end: Long)

    private val input: RandomAccessFile =
        try {
            RandomAccessFile(file, "r")
        } catch (error: IOException) {
            refuse("it cannot be read: ${error.message}")
        }
    private val begin: Long
    private val entries: Map<String, Entry>

    init {
        val header = bytes(0, 8).long
        if (header !in 2..minOf(MAX_HEADER_BYTES, input.length() - 8)) refuse("its header has $header bytes")
        begin = 8 + header
        val text = String(bytes(8, header.toInt()).array())
        val problems = ArrayList<String>()
        val root =
            try {
                Fields("", Json.parse(text), problems)
            } catch (error: JsonError) {
                refuse("its header is not JSON: ${error.message}")
            }
        entries = (root.names - "__metadata__").associateWith { name -> entry(root.fields(name)) }
        if (problems.isNotEmpty()) refuse(problems.first())
    }

    val names: Set<String> get() = entries.keys

    fun floats(name: String): FloatArray {
        val buffer = data(name, "F32", Float.SIZE_BYTES).asFloatBuffer()
        return FloatArray(buffer.remaining()).also { buffer.get(it) }
    }

    /** Token ids, stored in 64 bits. */
    fun ids(name: String): IntArray {
        val buffer = data(name, "I64", Long.SIZE_BYTES).asLongBuffer()
        return IntArray(buffer.remaining()) { i ->
            val id = buffer.get(i)
            if (id !in 0..Int.MAX_VALUE) refuse("$name has the id $id")
            id.toInt()
        }
    }

    fun raw(name: String): ByteArray = data(name, "U8", 1).let { ByteArray(it.remaining()).also(it::get) }

    override fun close() = input.close()

    private fun entry(fields: Fields): Entry {
        val offsets = fields.counts("data_offsets")
        if (offsets.size != 2) refuse("a tensor has no place")
        return Entry(fields.text("dtype"), fields.counts("shape"), offsets[0].toLong(), offsets[1].toLong())
    }

    private fun data(name: String, type: String, itemBytes: Int): ByteBuffer {
        val entry = entries[name] ?: refuse("it has no $name")
        val size = entry.shape.fold(itemBytes.toLong()) { n, length -> n * length }
        val fits = entry.type == type && entry.end - entry.begin == size
        if (!fits) refuse("$name is not of type $type, or of another size")
        if (begin + entry.end > input.length()) refuse("it ends too early")
        return bytes(begin + entry.begin, size.toInt())
    }

    private fun bytes(at: Long, n: Int): ByteBuffer {
        val out = ByteArray(n)
        try {
            input.seek(at)
            input.readFully(out)
        } catch (error: IOException) {
            refuse("it ends too early")
        }
        return ByteBuffer.wrap(out).order(ByteOrder.LITTLE_ENDIAN)
    }

    private fun refuse(what: String): Nothing {
        val message = "${file.name} is no reference: $what."
        throw BundleError(BundleError.Kind.DAMAGED, message, "Download or copy the model again.")
    }

    private companion object {
        const val MAX_HEADER_BYTES = 10_000_000L
    }
}
