package com.tinyqmoe.core

import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.withContext
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.coroutines.coroutineContext

/** A prompt of `reference.safetensors` with the logits, greedy tokens and digest that a package must answer. */
internal class Answer(val prompt: IntArray, val logits: List<FloatArray>, val tokens: IntArray, val sha256: String) {
    val following: Int get() = tokens.size - 1
}

/**
 * "Check this model": runs the prompts of `reference.safetensors`, and judges the answers as `tinyqmoe parity` does.
 * Whether the matrices decode to the quantizer's levels is left to the computer; SHA-256 of the files is
 * [Bundle.verify].
 */
class ModelCheck(private val bundle: Bundle, private val engine: Engine, private val device: String) {
    private val gate = Gate.of(bundle.manifest.sessionPackage.kvType)
    private val vocab = bundle.manifest.model.vocab

    /** Of the digests of the exact logits, each of one answer. */
    private val exact = Hashes.sha256()

    /**
     * The report. [progress] is told the tokens that were run and those that will be. Forgets what the engine was fed.
     * Takes many seconds; it ends within a batch when its coroutine is cancelled. Throws [BundleError].
     */
    suspend fun run(progress: (done: Int, total: Int) -> Unit): CheckReport =
        withContext(Dispatchers.Default) {
            Safetensors(bundle.file(Manifest.REFERENCE)).use { file ->
                val prompts = file.names.count { it.startsWith("prompt.") }
                val total = (0 until prompts).sumOf { work(file, it) }
                var done = 0
                exact.reset()
                val ran = { tokens: Int -> progress((done + tokens).also { done = it }, total) }
                val checks = (0 until prompts).flatMap { judge(answer(file, it), ran) }
                engine.trim(0)
                CheckReport(bundle.name, device, checks, Hashes.hex(exact.digest()))
            }
        }

    private fun arithmetic() = bundle.manifest.sessionPackage.let { "${it.activations}-${it.kvType.name.lowercase()}" }

    private fun fillsContext(prompt: IntArray) = prompt.size == bundle.manifest.context

    /** Number of tokens that a prompt takes, in all ways that it is fed. */
    private fun work(file: Safetensors, i: Int): Int {
        val prompt = file.ids("prompt.$i")
        if (fillsContext(prompt)) return prompt.size
        return (feeding(prompt.size).size + 1) * (prompt.size + file.ids("${arithmetic()}.$i.tokens").size - 1)
    }

    private fun answer(file: Safetensors, i: Int): Answer {
        val prompt = file.ids("prompt.$i")
        val tokens = file.ids("${arithmetic()}.$i.tokens")
        val all = file.floats("${arithmetic()}.$i.logits")
        val rows = tokens.indices.map { all.copyOfRange(it * vocab, (it + 1) * vocab) }
        return Answer(prompt, rows, tokens, Hashes.hex(file.raw("exact.$i.sha256")))
    }

    /** Ways to feed a prompt: names and lengths of the chunks, in tokens. */
    private fun feeding(n: Int): Map<String, List<Int>> =
        buildMap {
            put("prefill", listOf(n))
            if (n >= 3) put("split prefill", listOf(n / 3, n - n / 3 - 1, 1))
            if (n >= 2) put("step by step", List(n) { 1 })
        }

    private suspend fun judge(answer: Answer, ran: (Int) -> Unit): List<Check> {
        if (fillsContext(answer.prompt)) return fullContext(answer, ran)
        val checks = ArrayList<Check>()
        for ((how, chunks) in feeding(answer.prompt.size)) {
            val what = "${answer.prompt.size} + ${answer.following} tokens, $how"
            val rows = ArrayList<FloatArray>()
            rows += feed(answer.prompt, chunks)
            for (token in answer.tokens.dropLast(1)) rows += next(token)
            checks += logitsCheck(what, answer, rows)
            val digest = digest(rows)
            if (chunks.size == 1) exact.update(digest)
            checks += bits(what, answer, rows.size, digest)
            ran(answer.prompt.size + answer.following)
        }
        return checks + greedy(answer).also { ran(answer.prompt.size + answer.following) }
    }

    /**
     * Logits after a prompt that is fed anew, in chunks; a long chunk in pieces, between which a cancel takes
     * effect.
     */
    private suspend fun feed(prompt: IntArray, chunks: List<Int>): FloatArray {
        engine.trim(0)
        val logits = FloatArray(vocab)
        var at = 0
        for (chunk in chunks) {
            val end = at + chunk
            while (at < end) {
                coroutineContext.ensureActive()
                val n = minOf(end - at, PIECE)
                engine.feed(prompt.copyOfRange(at, at + n), if (at + n == prompt.size) logits else null)
                at += n
            }
        }
        return logits
    }

    private suspend fun next(token: Int): FloatArray {
        coroutineContext.ensureActive()
        return FloatArray(vocab).also { engine.feed(intArrayOf(token), it) }
    }

    private fun logitsCheck(what: String, answer: Answer, rows: List<FloatArray>): Check {
        val differences = rows.mapIndexed { i, row -> Difference.of(answer.logits[i], row, gate) }
        val kl = differences.map { it.kl }.sorted()
        val sqnr = differences.map { it.sqnr }.sorted()
        // Of two middles, the worse counts.
        val klMedian = kl[kl.size / 2]
        val sqnrMedian = sqnr[(sqnr.size - 1) / 2]
        val passed =
            klMedian <= gate.medianKl && kl.last() <= gate.worstKl && sqnrMedian >= gate.medianSqnr &&
                sqnr.first() >= gate.worstSqnr && differences.all { it.same }
        return Check(Verdict.LOGITS, what, passed, rows.size, klMedian, kl.last(), sqnrMedian, sqnr.first())
    }

    private fun digest(rows: List<FloatArray>): ByteArray {
        val digest = Hashes.sha256()
        for (row in rows) {
            val bytes = ByteBuffer.allocate(row.size * Float.SIZE_BYTES).order(ByteOrder.LITTLE_ENDIAN)
            bytes.asFloatBuffer().put(row)
            digest.update(bytes.array())
        }
        return digest.digest()
    }

    private fun bits(what: String, answer: Answer, positions: Int, digest: ByteArray): Check {
        val same = Hashes.hex(digest) == answer.sha256
        val detail = if (same) "" else "the logits have other bits than where the bundle was made"
        return Check(Verdict.BITS, what, same, positions, detail = detail)
    }

    /** The tokens that the package generates on its own; it may leave the reference only where that is undecided. */
    private suspend fun greedy(answer: Answer): Check {
        val what = "${answer.prompt.size} tokens, then its own"
        var logits = feed(answer.prompt, listOf(answer.prompt.size))
        for ((step, want) in answer.tokens.withIndex()) {
            val got = Difference.best(logits)
            if (got != want) {
                val reference = answer.logits[step]
                val passed = reference[want] - reference[got] <= gate.nearTie(reference)
                val detail = "token $step is $got, not $want: ${if (passed) "a near tie" else "not a tie"}"
                return Check(Verdict.GREEDY, what, passed, answer.tokens.size, detail = detail)
            }
            if (step < answer.following) logits = next(got)
        }
        return Check(Verdict.GREEDY, what, true, answer.tokens.size)
    }

    /**
     * A context that is full: its last logits, the last slots filled token by token, and one more token is
     * refused.
     */
    private suspend fun fullContext(answer: Answer, ran: (Int) -> Unit): List<Check> {
        val n = answer.prompt.size
        val steps = minOf(4, n - 1)
        val rows = listOf(feed(answer.prompt, listOf(n - steps) + List(steps) { 1 }))
        ran(n)
        val refused =
            try {
                engine.feed(intArrayOf(0))
                false
            } catch (error: BundleError) {
                error.kind == BundleError.Kind.CONTEXT
            }
        val what = "$n tokens: the whole context"
        val digest = digest(rows)
        exact.update(digest)
        return listOf(
            logitsCheck(what, answer, rows),
            bits(what, answer, rows.size, digest),
            Check(Verdict.CONTEXT, "token ${n + 1} is refused", refused, 1),
        )
    }

    private companion object {
        const val PIECE = 32
    }
}
