package com.tinyqmoe.core

import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

/** An engine that answers with the tokens of [script], from its first one when the prompt ends. */
private class ScriptedEngine(private val context: Int, private val script: List<Int>) : Engine {
    val held = ArrayList<Int>()
    val fed = ArrayList<Int>()
    var closed = 0
    var fails = false
    private var said = 0

    override fun feed(tokens: IntArray, logits: FloatArray?) {
        if (fails) throw CoreStatus.error(67, "")
        assertTrue("more than the context", held.size + tokens.size <= context)
        assertTrue("calls from another thread", Thread.currentThread().name.startsWith("tinyqmoe-session"))
        held += tokens.asList()
        fed += tokens.asList()
        if (logits == null) return
        logits.fill(0f)
        logits[script[said++ % script.size]] = 100f
    }

    override fun step(token: Int): Int = FloatArray(VOCAB).also { feed(intArrayOf(token), it) }.let { row -> row.indices.maxByOrNull { row[it] }!! }

    override fun trim(positions: Int) {
        assertTrue(positions <= held.size)
        while (held.size > positions) held.removeAt(held.size - 1)
        said = 0
    }

    override fun state() = EngineState(held.size, context, VOCAB, 1, 0, 0, 0, fed.size.toLong(), 0)

    override fun close() {
        closed++
    }

    companion object {
        const val VOCAB = 1024
    }
}

class SessionTest {
    private val bundle = Bundle.open(MadeBundle(scratch("session")).folder)
    private val tokenizer = Tokenizer.read(File(Project.golden, "tokenizer/gpt2.json").readText())
    private val end = bundle.manifest.model.eosTokens.first()
    private val hello = tokenizer.encode("Hello, 🪁 world").asList()
    private val question = listOf(Message(Role.USER, "What is a kite?"))

    private fun engine(script: List<Int> = hello + end, context: Int = 512) = ScriptedEngine(context, script)

    private fun text(replies: List<Reply>) = replies.filterIsInstance<Reply.Text>().joinToString("") { it.text }

    private fun done(replies: List<Reply>) = replies.last() as Reply.Done

    @Test
    fun anAnswerComesInPiecesAndEnds() = runBlocking {
        val session = Session(bundle, tokenizer, engine())
        for (sampling in listOf(Sampling(), Sampling(temperature = 0.1, seed = 7))) {
            val replies = session.reply(question, sampling).toList()
            assertEquals("Hello, 🪁 world", text(replies))
            assertTrue(replies.filterIsInstance<Reply.Text>().size > 3)
            assertEquals(Ending.END, done(replies).ending)
            assertEquals(hello.size, done(replies).stats.answerTokens)
            assertEquals(done(replies).stats, session.stats.value)
        }
        session.close()
    }

    @Test
    fun aTurnCostsItsOwnTokens() = runBlocking {
        val engine = engine()
        val session = Session(bundle, tokenizer, engine)
        session.reply(question).toList()
        val before = engine.fed.size
        val next = question + listOf(Message(Role.ASSISTANT, "Hello, 🪁 world"), Message(Role.USER, "More"))
        val stats = done(session.reply(next).toList()).stats
        assertTrue("$stats", stats.reusedTokens > 10)
        assertEquals(stats.promptTokens - stats.reusedTokens + hello.size, engine.fed.size - before)
        assertEquals(engine.held.size, stats.promptTokens + hello.size)
        val again = done(session.reply(next).toList()).stats // all but the last token, whose logits are asked for
        assertEquals(stats.promptTokens - 1, again.reusedTokens)
        session.close()
    }

    @Test
    fun aCancelStopsWithinAToken() = runBlocking {
        val engine = engine(script = hello)
        val session = Session(bundle, tokenizer, engine)
        session.reply(question, limits = ReplyLimits(400)).take(8).toList()
        val held = engine.held.size
        assertEquals("Hello", text(session.reply(question, limits = ReplyLimits(400)).toList().take(40)).take(5))
        val prompt = held - 8
        assertTrue("$held", prompt > 10 && held < prompt + 20)
        session.close()
    }

    @Test
    fun limitsEndAnAnswer() = runBlocking {
        val session = Session(bundle, tokenizer, engine(script = hello))
        assertEquals(Ending.LIMIT, done(session.reply(question, limits = ReplyLimits(5)).toList()).ending)
        assertEquals(5, session.stats.value.answerTokens)
        val replies = session.reply(question, limits = ReplyLimits(5000)).toList()
        assertEquals(Ending.CONTEXT, done(replies).ending)
        assertEquals(512, session.stats.value.engine!!.positions)
        assertEquals(512 + 1, session.stats.value.let { it.promptTokens + it.answerTokens })
        assertThrows(IllegalArgumentException::class.java) { ReplyLimits(0) }
        session.close()
    }

    @Test
    fun theOldestTurnsAreLeftOutWithAWord() = runBlocking {
        val engine = engine()
        val session = Session(bundle, tokenizer, engine)
        val many = List(20) { Message(if (it % 2 == 0) Role.USER else Role.ASSISTANT, "turn $it, ".repeat(8)) } + question
        val replies = session.reply(many).toList()
        val dropped = replies.first() as Reply.Dropped
        assertTrue("$dropped", dropped.messages in 2..18 && dropped.messages % 2 == 0)
        assertTrue(dropped.words, "${dropped.messages}" in dropped.words)
        assertTrue(session.stats.value.promptTokens <= 512 - 128)
        val prompt = tokenizer.decode(engine.held.toIntArray())
        assertTrue(prompt.startsWith("<|without_system|>turn ${dropped.messages}, "))
        session.close()
    }

    @Test
    fun aMessageThatIsTooLongIsRefused() {
        runBlocking {
            val session = Session(bundle, tokenizer, engine())
            val long = listOf(Message(Role.USER, "kite 1 ".repeat(300)))
            refused(BundleError.Kind.CONTEXT, "512") { runBlocking { session.reply(long).toList() } }
            assertEquals("Hello, 🪁 world", text(session.reply(question).toList()))
            session.close()
        }
    }

    @Test
    fun anEngineThatFailsOnceGoesOn() {
        runBlocking {
            val engine = engine()
            val session = Session(bundle, tokenizer, engine)
            engine.fails = true
            refused(BundleError.Kind.CORE, "NON_FINITE") { runBlocking { session.reply(question).toList() } }
            engine.fails = false
            assertEquals("Hello, 🪁 world", text(session.reply(question).toList()))
            session.close()
        }
    }

    @Test
    fun answersComeOneAfterTheOther() = runBlocking {
        val session = Session(bundle, tokenizer, engine())
        val texts = ArrayList<String>()
        List(3) { launch { texts += text(session.reply(question).toList()) } }.forEach { it.join() }
        assertEquals(List(3) { "Hello, 🪁 world" }, texts)
        session.close()
    }

    @Test
    fun whatIsClosedIsClosedOnce() = runBlocking {
        val engine = engine()
        val session = Session(bundle, tokenizer, engine)
        session.reply(question).first()
        session.close()
        session.close()
        assertEquals(1, engine.closed)
        assertThrows(Exception::class.java) { runBlocking { session.reply(question).toList() } }
        Unit
    }

    @Test
    fun anEngineThatDoesNotOpenLeavesNoThread() {
        File(bundle.folder, "tokenizer.json").writeText(File(Project.golden, "tokenizer/gpt2.json").readText())
        val opener = EngineOpener { _, _ -> throw CoreStatus.error(65, "") }
        refused(BundleError.Kind.CORE, "OUT_OF_MEMORY") { runBlocking { Session.open(bundle, opener) } }
        val session = runBlocking { Session.open(bundle, { _, _ -> engine() }) }
        assertEquals("Hello, 🪁 world", runBlocking { text(session.reply(question).toList()) })
        runBlocking { session.close() }
    }
}
