package com.tinyqmoe.core

import com.tinyqmoe.core.BundleError.Kind

/** The strict reader of manifest.json (tests/golden/README.md says what is refused, and how the digest is made). */
internal object ManifestReader {
    private const val DIGEST = "sha256"
    private const val EXPORT_AGAIN = "Export the model again, or get it again from where it came from."
    private val ARITHMETICS = setOf("int16", "float32", "float16")

    fun read(text: String): Manifest {
        val content = contentOf(text)
        val problems = ArrayList<String>()
        val manifest = build(Fields("", content, problems), problems)
        if (problems.isNotEmpty()) throw invalid(problems)
        return manifest ?: throw BundleError(
            Kind.NO_PACKAGE,
            "The bundle has no package that a session can run.",
            "Export it with --target android.",
        )
    }

    /** The content of what was sealed, without its digest. */
    private fun contentOf(text: String): Map<String, Any?> {
        val value =
            try {
                Json.parse(text)
            } catch (error: JsonError) {
                throw BundleError(Kind.NO_MANIFEST, "manifest.json is not JSON: ${error.message}.", EXPORT_AGAIN, error)
            }
        val whole =
            value as? Map<*, *>
                ?: throw BundleError(Kind.NO_MANIFEST, "manifest.json must hold an object.", EXPORT_AGAIN)
        val version = whole["schema_version"]
        if (version != JsonNumber("${Manifest.SCHEMA_VERSION}")) {
            val what = "manifest.json has schema version $version, this app reads ${Manifest.SCHEMA_VERSION}."
            throw BundleError(Kind.SCHEMA_VERSION, what, "Export the model again, or use another version of this app.")
        }
        val content = whole.entries.associate { it.key as String to it.value } - DIGEST
        if (whole[DIGEST] != Hashes.of(Json.write(sorted(content)))) {
            val what = "manifest.json has been changed: its digest is that of another content."
            throw BundleError(Kind.CHANGED, what, EXPORT_AGAIN)
        }
        return content
    }

    /** The same value with the names of all objects in the order of their code points. */
    private fun sorted(value: Any?): Any? =
        when (value) {
            is Map<*, *> -> value.entries.sortedWith { a, b -> compareCodePoints(a.key as String, b.key as String) }
                .associate { it.key to sorted(it.value) }
            is List<*> -> value.map { sorted(it) }
            else -> value
        }

    /** UTF-32 order, which differs from that of Kotlin's Strings past U+FFFF: bytes of UTF-8 have it. */
    private fun compareCodePoints(a: String, b: String): Int {
        val left = a.codePoints().toArray()
        val right = b.codePoints().toArray()
        for (i in 0 until minOf(left.size, right.size)) if (left[i] != right[i]) return left[i].compareTo(right[i])
        return left.size.compareTo(right.size)
    }

    /** Null where no package is for a session. */
    private fun build(root: Fields, problems: MutableList<String>): Manifest? {
        val files = root.list("files").map { FileEntry(it.text("path"), it.long("n_bytes"), it.text("sha256")) }
        problems += files.filter { !isInside(it.path) }.map { "files names ${it.path}, which is outside of the bundle" }
        val artifacts = root.list("artifacts")
        if (artifacts.isEmpty()) problems += "there is no artifact"
        val packages = artifacts.map { packageOf(it, files, problems) }
        val network = root.fields("network")
        val chat = root.fields("chat")
        val strings = chat.fields("strings").let { inner -> inner.names.associateWith { inner.text(it) } }
        val trims = chat.texts("trims").mapNotNull { word -> Role.entries.firstOrNull { it.word == word } }
        return Manifest(
            root.fields("model").text("name"),
            interfaceOf(root.fields("interface"), problems),
            NetworkSizes(
                network.count("hidden"), network.count("inner"), network.count("layers"),
                network.count("heads"), network.count("kv_heads"), network.count("head_dim"),
            ),
            packages.firstOrNull { it != null } ?: return null.also { root.texts("warnings") },
            if ("generation" in strings) ChatFormat(strings, trims.toSet()) else null,
            chat.text("problem"),
            root.texts("warnings"),
            files,
        )
    }

    private fun interfaceOf(fields: Fields, problems: MutableList<String>): ModelInterface {
        val rule = fields.text("bos_rule")
        val known = BosRule.entries.firstOrNull { it.name.lowercase() == rule }
        if (known == null) problems += "interface.bos_rule $rule is unknown"
        return ModelInterface(
            fields.count("context"),
            fields.count("vocab_size"),
            known ?: BosRule.UNKNOWN,
            fields.countOrNull("bos_token_id"),
            fields.counts("eos_token_ids").toSet(),
        )
    }

    /** The package of an artifact, or null for one that is not for sessions (exporter/native/llm/MANIFEST.md). */
    private fun packageOf(artifact: Fields, files: List<FileEntry>, problems: MutableList<String>): SessionPackage? {
        val path = artifact.text("path")
        val activations = artifact.text("activations")
        if (activations !in ARITHMETICS) problems += "$path: activations $activations are unknown"
        val kvType = artifact.text("kv_type")
        val known = KvType.entries.firstOrNull { it.name.lowercase() == kvType }
        if (known == null) problems += "$path: kv_type $kvType is unknown"
        val vectors = artifact.byName("vectors")
        if (vectors.isEmpty() || activations != "int16") return null
        val names = (artifact.byName("places").values + vectors.values).mapTo(LinkedHashSet()) { it.text("file") }
        val listed = files.associateBy { it.path }
        problems += names.filter { it !in listed }.map { "$it is not listed in files" }
        val cacheBytes = artifact.long("kv_cache_bytes")
        return SessionPackage(activations, known ?: KvType.FLOAT16, cacheBytes, names.mapNotNull { listed[it] })
    }

    private fun isInside(path: String): Boolean =
        path.isNotEmpty() && '\\' !in path && '\u0000' !in path && path.split('/').none { it in setOf("", ".", "..") }

    private fun invalid(problems: List<String>): BundleError {
        val shown = problems.take(8).joinToString("; ")
        val more = if (problems.size > 8) "; and ${problems.size - 8} more" else ""
        return BundleError(Kind.INVALID, "manifest.json is not valid: $shown$more.", EXPORT_AGAIN)
    }
}
