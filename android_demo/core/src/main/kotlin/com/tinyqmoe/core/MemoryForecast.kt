package com.tinyqmoe.core

/**
 * The memory that a session of a bundle takes, before it is loaded.
 *
 * @param limitBytes memory that the app may hold.
 */
class MemoryForecast(manifest: Manifest, private val limitBytes: Long) {
    /** KV cache, in bytes. */
    val kvCacheBytes: Long = manifest.sessionPackage.kvCacheBytes

    /** Buffers of the network and the tokenizer, in bytes. */
    val bufferBytes: Long get() = TODO()

    /** Memory that cannot be dropped, in bytes: what a limit counts. */
    val dirtyBytes: Long get() = kvCacheBytes + bufferBytes

    /** Pages of files, in bytes: they can be dropped and read again, which makes answers slow. */
    val cleanBytes: Long = manifest.sessionPackage.weightFiles.sumOf { it.bytes }

    /** Whether what cannot be dropped fits the limit. */
    val fits: Boolean get() = dirtyBytes <= limitBytes

    /** Whether the weights fit beside it, so that answers come at full speed. */
    val fitsWithWeights: Boolean get() = dirtyBytes + cleanBytes <= limitBytes

    /** A sentence for the user. */
    val words: String get() = TODO()
}
