package com.tinyqmoe.engine

import com.tinyqmoe.core.Bundle
import com.tinyqmoe.core.Check
import com.tinyqmoe.core.CheckReport
import com.tinyqmoe.core.Ending
import com.tinyqmoe.core.Engine
import com.tinyqmoe.core.EngineKind
import com.tinyqmoe.core.EngineOptions
import com.tinyqmoe.core.Json
import com.tinyqmoe.core.JsonNumber
import com.tinyqmoe.core.MemoryForecast
import com.tinyqmoe.core.Message
import com.tinyqmoe.core.ModelCheck
import com.tinyqmoe.core.Reply
import com.tinyqmoe.core.ReplyLimits
import com.tinyqmoe.core.Role
import com.tinyqmoe.core.Sampling
import com.tinyqmoe.core.Session
import com.tinyqmoe.core.Verdict
import kotlinx.coroutines.cancel
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNotEquals
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest

/** Real tokens out of Kotlin: those of `tinyqmoe run --backend native`, to the last bit. */
class RealTokensTest {
    private val golden =
        Json.parse(File(System.getProperty("tinyqmoe.root"), "tests/golden/demo.json").readText()) as Map<*, *>

    private fun question(model: RealModel) = listOf(Message(Role.USER, model.question))

    private fun text(replies: List<Reply>) = replies.filterIsInstance<Reply.Text>().joinToString("") { it.text }

    @Test
    fun theAnswerIsThatOfTheCommandLine() = runBlocking {
        for (model in RealModel.all) {
            val prompt = ints(model.run["prompt_tokens"])
            val tokens = ints(model.run["tokens"])
            val session = Session.open(model.bundle, NativeSession)
            val replies = session.reply(question(model), limits = ReplyLimits(tokens.size)).toList()
            assertEquals("$model", model.run["text"], text(replies))
            val stats = (replies.last() as Reply.Done).stats
            assertEquals(prompt.size to tokens.size, stats.promptTokens to stats.answerTokens)
            val speed = "%.1f".format(stats.tokensPerSecond ?: 0.0)
            println("$model: ${stats.firstTokenMillis} ms to the first token, $speed tokens/s")
            val again = session.reply(question(model), limits = ReplyLimits(tokens.size)).toList()
            assertEquals(text(replies), text(again))
            assertEquals(prompt.size - 1, (again.last() as Reply.Done).stats.reusedTokens)
            session.close()
        }
    }

    @Test
    fun tokensAndBitsAreThoseOfTheGoldenFile() {
        for (options in listOf(EngineOptions(threads = 1), EngineOptions(kind = EngineKind.EXECUTORCH))) {
            NativeSession.open(RealModel.demo.bundle, options).use { checkBits("$options", it) }
        }
    }

    private fun checkBits(name: String, engine: Engine) {
        val answers = (golden["reference"] as List<*>) + golden["chat"]
        for (answer in answers.map { it as Map<*, *> }) {
            engine.trim(0)
            val digest = MessageDigest.getInstance("SHA-256")
            val row = FloatArray(engine.state().vocab)
            val tokens = ArrayList<Int>()
            engine.feed(ints(answer["prompt"]).toIntArray(), row)
            while (true) {
                val bytes = ByteBuffer.allocate(4 * row.size).order(ByteOrder.LITTLE_ENDIAN)
                bytes.asFloatBuffer().put(row)
                digest.update(bytes.array())
                tokens += row.indices.maxByOrNull { row[it] }!!
                if (tokens.size == ints(answer["tokens"]).size) break
                engine.feed(intArrayOf(tokens.last()), row)
            }
            assertEquals(name, ints(answer["tokens"]), tokens)
            assertEquals(name, answer["sha256"], digest.digest().joinToString("") { "%02x".format(it) })
        }
    }

    @Test
    fun stepsAreTheTokensOfFeeding() {
        NativeSession.open(RealModel.demo.bundle, EngineOptions()).use { engine ->
            val chat = golden["chat"] as Map<*, *>
            val prompt = ints(chat["prompt"])
            engine.feed(prompt.dropLast(1).toIntArray())
            val expected = ints(chat["tokens"])
            val tokens = generateSequence(engine.step(prompt.last())) { engine.step(it) }.take(expected.size).toList()
            assertEquals(expected, tokens)
        }
    }

    @Test
    fun theVerdictsAreThoseOfParity() = runBlocking {
        for (model in RealModel.all) {
            val bundle = model.bundle
            val report = check(bundle, NativeSession.open(bundle, EngineOptions()))
            assertTrue(report.text(), report.passed && report.sameBits)
            val theirs = model.parity
            val names = report.checks.map { "${it.verdict.name.lowercase()}: ${it.what}" }
            assertEquals(theirs.map { "${it["verdict"]}: ${it["what"]}" }, names)
            for ((mine, other) in report.checks.zip(theirs)) compare(mine, other)
            assertEquals(true, (Json.parse(report.json()) as Map<*, *>)["passed"])
        }
    }

    @Test
    fun theDigestIsThatOfTheGoldenAnswers() = runBlocking {
        val digest = MessageDigest.getInstance("SHA-256")
        for (answer in golden["reference"] as List<*>) {
            val hex = (answer as Map<*, *>)["sha256"] as String
            digest.update(hex.chunked(2) { it.toString().toInt(16).toByte() }.toByteArray())
        }
        val bundle = RealModel.demo.bundle
        val report = check(bundle, NativeSession.open(bundle, EngineOptions()))
        assertEquals(digest.digest().joinToString("") { "%02x".format(it) }, report.bits)
        assertTrue(report.text(), report.bits in report.text())
        assertEquals(report.bits, (Json.parse(report.json()) as Map<*, *>)["bits"])
        val other = check(bundle, WrongEngine(NativeSession.open(bundle, EngineOptions()), 1e-5f))
        assertNotEquals(other.bits, report.bits)
    }

    private suspend fun check(bundle: Bundle, engine: Engine): CheckReport =
        engine.use { ModelCheck(bundle, it, "a JVM").run { _, _ -> } }

    private fun compare(mine: Check, other: Map<*, *>) {
        assertEquals(mine.what, other["passed"], mine.passed)
        if (mine.verdict != Verdict.LOGITS) return
        val kl = listOf("kl_median" to mine.klMedian, "kl_worst" to mine.klWorst)
        for ((name, value) in kl + listOf("sqnr_db_median" to mine.sqnrMedian, "sqnr_db_worst" to mine.sqnrWorst)) {
            val expected = (other[name] as JsonNumber).toDouble()
            assertEquals("${mine.what}, $name", expected, value!!, 1e-6 * Math.abs(expected) + 1e-12)
        }
    }

    /** Wrong by a little, as with one scale that is off: only the bits tell. Wrong by much: the logits and tokens too. */
    @Test
    fun aModelThatAnswersOtherwiseFails() = runBlocking {
        val bundle = RealModel.demo.bundle
        val all = setOf(Verdict.BITS, Verdict.LOGITS, Verdict.GREEDY)
        for ((error, verdicts) in listOf(1e-5f to setOf(Verdict.BITS), 30f to all)) {
            val report = check(bundle, WrongEngine(NativeSession.open(bundle, EngineOptions()), error))
            assertEquals(verdicts, report.checks.filter { !it.passed }.map { it.verdict }.toSet())
            assertTrue(report.text(), "FAILED" in report.text() && "OTHER bits" in report.text())
        }
    }

    /** An engine whose token 7 is likelier by [error]. */
    private class WrongEngine(private val engine: Engine, private val error: Float) : Engine by engine {
        override fun feed(tokens: IntArray, logits: FloatArray?) {
            engine.feed(tokens, logits)
            if (logits != null) logits[7] += error
        }
    }

    @Test
    fun aCheckThatIsCancelledEnds() = runBlocking {
        val bundle = RealModel.demo.bundle
        NativeSession.open(bundle, EngineOptions()).use { engine ->
            var seen = 0
            val job =
                launch {
                    ModelCheck(bundle, engine, "a JVM").run { done, total ->
                        seen = done
                        if (done < total) this@launch.cancel()
                    }
                }
            job.join()
            assertTrue("$seen", job.isCancelled && seen > 0)
        }
    }

    @Test
    fun theSameSeedSaysTheSame() = runBlocking {
        val session = Session.open(RealModel.demo.bundle, NativeSession)
        val texts =
            listOf(3L, 3L, 4L).map { seed ->
                val sampling = Sampling(3.0, 50, 0.95, seed)
                text(session.reply(question(RealModel.demo), sampling, ReplyLimits(20)).toList())
            }
        assertEquals(texts[0], texts[1])
        assertNotEquals(texts[0], texts[2])
        session.close()
    }

    @Test
    fun aCancelStopsWithinATokenAndTheSessionGoesOn() = runBlocking {
        val session = Session.open(RealModel.demo.bundle, NativeSession)
        val limits = ReplyLimits(100)
        session.reply(question(RealModel.demo), limits = limits).take(6).toList()
        val fed = session.withEngine { it.state().fedTokens }
        assertTrue("$fed", fed < 13 + 12)
        val replies = session.reply(question(RealModel.demo), limits = limits).toList()
        assertTrue((replies.last() as Reply.Done).ending in listOf(Ending.END, Ending.LIMIT))
        session.close()
    }

    @Test
    fun theForecastIsNearWhatASessionHolds() {
        for (model in RealModel.all) {
            val forecast = MemoryForecast(model.bundle.manifest, Long.MAX_VALUE)
            val state = NativeSession.open(model.bundle, EngineOptions()).use { engine ->
                engine.feed(IntArray(minOf(128, engine.state().context)) { 5 })
                engine.state()
            }
            assertEquals(forecast.kvCacheBytes.toDouble(), state.kvCacheBytes.toDouble(), 0.05 * forecast.kvCacheBytes)
            val near = forecast.bufferBytes / 2..forecast.bufferBytes * 2
            assertTrue("${forecast.bufferBytes} $state", state.bufferBytes in near)
            assertEquals(forecast.cleanBytes, state.mappedBytes)
        }
    }
}
