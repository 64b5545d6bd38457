package com.tinyqmoe.core

/**
 * The memory that a session of a bundle takes, before it is loaded.
 *
 * @param limitBytes memory that the app may hold.
 */
class MemoryForecast(manifest: Manifest, private val limitBytes: Long) {
    /** KV cache, in bytes. */
    val kvCacheBytes: Long = manifest.sessionPackage.kvCacheBytes

    /** Buffers of the network, and two rows of logits, in bytes: an estimate for batches of the default size. */
    val bufferBytes: Long =
        manifest.network.let { n ->
            val heads = 2L * (n.heads + n.kvHeads) * n.headDim
            val floats = 2L * n.hidden + heads + 2L * n.inner + n.headDim + maxOf(n.hidden, n.inner)
            BATCH_TOKENS * floats * Float.SIZE_BYTES + 2L * manifest.model.vocab * Float.SIZE_BYTES
        }

    /** The tokenizer, in bytes: an estimate. */
    val tokenizerBytes: Long = manifest.model.vocab * BYTES_PER_TOKEN

    /** Memory that cannot be dropped, in bytes: what a limit counts. */
    val dirtyBytes: Long get() = kvCacheBytes + bufferBytes + tokenizerBytes

    /** Pages of files, in bytes: they can be dropped and read again, which makes answers slow. */
    val cleanBytes: Long = manifest.sessionPackage.weightFiles.sumOf { it.bytes }

    /** Whether what cannot be dropped fits the limit. */
    val fits: Boolean get() = dirtyBytes <= limitBytes

    /** Whether the weights fit beside it, so that answers come at full speed. */
    val fitsWithWeights: Boolean get() = dirtyBytes + cleanBytes <= limitBytes

    /** A sentence for the user. */
    val words: String
        get() {
            val needs = "It needs ${megabytes(dirtyBytes)} MB, and reads ${megabytes(cleanBytes)} MB of weights"
            return when {
                !fits -> "This model does not fit: $needs. The app may hold ${megabytes(limitBytes)} MB."
                !fitsWithWeights -> "This model fits, but not its weights, so answers are slow: $needs."
                else -> "This model fits: $needs."
            }
        }

    private fun megabytes(bytes: Long) = (bytes + 999_999) / 1_000_000

    private companion object {
        const val BATCH_TOKENS = 128L // of session.h
        const val BYTES_PER_TOKEN = 400L // entries of a map, a text and bytes, on a 64-bit virtual machine
    }
}
