package com.tinyqmoe.core

import java.io.File

/** A bundle of small files that are no model, to be imported and damaged. */
internal class MadeBundle(val folder: File) {
    val weights = ByteArray(300_000) { (it * 31 + it / 7).toByte() }

    init {
        val files =
            mapOf("model.pte" to weights, "reference.safetensors" to ByteArray(1000) { 1 }, "tokenizer.json" to "{}".toByteArray(), "unused.txt" to ByteArray(10))
        for ((name, bytes) in files) File(folder.apply { mkdirs() }, name).writeBytes(bytes)
        writeManifest(files.mapValues { (name, bytes) -> bytes.size.toLong() to Hashes.of(File(folder, name)) })
    }

    /** A manifest that is sealed, with other sizes or digests where [files] says so. */
    fun writeManifest(files: Map<String, Pair<Long, String>>) {
        val listed = files.map { (path, is_) -> mapOf("n_bytes" to JsonNumber("${is_.first}"), "path" to path, "sha256" to is_.second) }
        val content = sorted(Project.json("manifest/good.json").map() - "sha256" + ("files" to listed))
        val digest = Hashes.of(Json.write(content))
        File(folder, Manifest.FILE).writeText(Json.write(content.map() + ("sha256" to digest)))
    }

    private fun sorted(value: Any?): Any? =
        when (value) {
            is Map<*, *> -> value.entries.sortedBy { it.key as String }.associate { it.key to sorted(it.value) }
            is List<*> -> value.map(::sorted)
            else -> value
        }
}
