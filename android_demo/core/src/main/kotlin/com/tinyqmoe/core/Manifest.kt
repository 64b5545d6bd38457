package com.tinyqmoe.core


/** A file of a bundle: its path relative to the bundle, its size, and its SHA-256 in hex digits. */
data class FileEntry(val path: String, val bytes: Long, val sha256: String)

/** Who puts the BOS token in front of a plain prompt: the tokenizer, nobody, or it is not known. */
enum class BosRule { TOKENIZER, NONE, UNKNOWN }

/** How keys and values are stored in the cache. */
enum class KvType { FLOAT16, FLOAT32, INT8 }

/** The package that a session reads: its arithmetic, cache, and the files of its weights. */
data class SessionPackage(
    val activations: String,
    val kvType: KvType,
    val kvCacheBytes: Long,
    val weightFiles: List<FileEntry>,
)

/** Sizes of the decoder, which buffers follow from. */
data class NetworkSizes(
    val hidden: Int,
    val inner: Int,
    val layers: Int,
    val heads: Int,
    val kvHeads: Int,
    val headDim: Int,
)

/** What all packages of a bundle share. [context]: positions of the KV cache; [vocab]: number of token ids. */
data class ModelInterface(
    val context: Int,
    val vocab: Int,
    val bosRule: BosRule,
    val bosToken: Int?,
    val eosTokens: Set<Int>,
)

/**
 * What an app needs of a bundle's `manifest.json`.
 *
 * @property chat the chat format, or null where the model has none; then [chatProblem] says why.
 * @property warnings whole sentences on what will disappoint.
 */
class Manifest internal constructor(
    val name: String,
    val model: ModelInterface,
    val network: NetworkSizes,
    val sessionPackage: SessionPackage,
    val chat: ChatFormat?,
    val chatProblem: String,
    val warnings: List<String>,
    val files: List<FileEntry>,
) {
    /** Positions of the KV cache: the most tokens of a conversation. */
    val context: Int get() = model.context

    /** The files that a session and "Check this model" need, manifest.json excepted. */
    val sessionFiles: List<FileEntry>
        get() = (sessionPackage.weightFiles + files.filter { it.path == TOKENIZER || it.path == REFERENCE })

    /** Their size, in bytes. */
    val sessionBytes: Long get() = sessionFiles.sumOf { it.bytes }

    companion object {
        /** The version of manifest.json that is read. */
        const val SCHEMA_VERSION = 10
        const val FILE = "manifest.json"
        const val TOKENIZER = "tokenizer.json"
        const val REFERENCE = "reference.safetensors"

        /**
         * The manifest of a text. Throws [BundleError]: NO_MANIFEST, SCHEMA_VERSION, CHANGED where its own digest
         * is not that of its content, INVALID with everything that is missing or of another type, NO_PACKAGE.
         */
        fun read(text: String): Manifest = ManifestReader.read(text)
    }
}
