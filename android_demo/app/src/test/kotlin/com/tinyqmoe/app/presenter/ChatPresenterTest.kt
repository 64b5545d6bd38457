package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.Conversations
import com.tinyqmoe.core.Ending
import com.tinyqmoe.core.Message
import com.tinyqmoe.core.PolicyEvent
import com.tinyqmoe.core.Reply
import com.tinyqmoe.core.Role
import com.tinyqmoe.core.Sampling
import com.tinyqmoe.core.Settings
import com.tinyqmoe.core.StopReason
import kotlinx.coroutines.CoroutineScope
import org.junit.Test
import kotlin.test.assertEquals
import kotlin.test.assertFalse
import kotlin.test.assertIs
import kotlin.test.assertNull
import kotlin.test.assertTrue

class ChatPresenterTest {
    private val folder = temporaryFolder()
    private val models = FakeModels()
    private val events = mutableListOf<PolicyEvent>()
    private var settings = Settings(sampling = Sampling(temperature = 1.0, seed = 5))

    private suspend fun CoroutineScope.chat() =
        ChatPresenter(Conversations(folder), loadedHolder(models), { settings }, this) { events += it }

    private suspend fun ChatPresenter.ask(text: String) {
        assertTrue(send(text))
        settle()
    }

    private val ChatPresenter.texts get() = state.value.messages.map { it.content }

    @Test
    fun `an answer comes in pieces and is kept on disk`() = onOneThread {
        models.script = {
            emit(Reply.Reading(4, 9))
            emit(Reply.Text("It is "))
            answer("Paris.")
        }
        val chat = chat()
        chat.ask("What is the capital of France?")
        assertEquals(listOf("What is the capital of France?", "It is Paris."), chat.texts)
        val kept = Conversations(folder).list().single()
        assertEquals(listOf(Role.USER, Role.ASSISTANT), kept.messages.map { it.role })
        assertEquals(listOf<PolicyEvent>(PolicyEvent.GenerationStarted, PolicyEvent.GenerationEnded), events)
        assertEquals(1, chat.state.value.stats?.answerTokens)
        assertNull(chat.state.value.reading)
    }

    @Test
    fun `a second tap on send asks once`() = onOneThread {
        val chat = chat()
        assertTrue(chat.send("a"))
        assertFalse(chat.send("a"))
        chat.settle()
        assertEquals(1, models.asked.size)
        assertFalse(chat.send("  "))
    }

    @Test
    fun `stop keeps what came`() = onOneThread {
        models.script = { hang("It is ") }
        val chat = chat()
        chat.send("a")
        until { chat.state.value.answer == "It is " }
        chat.stop()
        chat.settle()
        assertFalse(chat.state.value.isAnswering)
        assertEquals(listOf("a", "It is "), chat.texts)
        assertEquals(PolicyEvent.GenerationEnded, events.last())
    }

    @Test
    fun `stop right after send leaves a chat that can be used`() = onOneThread {
        val chat = chat()
        chat.send("a")
        chat.stop()
        chat.settle()
        assertFalse(chat.state.value.isAnswering)
        chat.ask("b")
        assertEquals("fine", chat.texts.last())
    }

    @Test
    fun `another answer replaces the last one and takes another seed`() = onOneThread {
        val chat = chat()
        chat.ask("a")
        models.script = { answer("better") }
        assertTrue(chat.regenerate())
        chat.settle()
        chat.regenerate()
        chat.settle()
        assertEquals(listOf("a", "better"), chat.texts)
        assertEquals(listOf(5L, 6L, 7L), models.asked.map { it.sampling.seed })
        assertEquals(listOf(1, 1, 1), models.asked.map { it.messages.size })
        chat.ask("b")
        assertEquals(5L, models.asked.last().sampling.seed)
    }

    @Test
    fun `a question said in other words forgets what followed it`() = onOneThread {
        val chat = chat()
        chat.ask("a")
        chat.ask("b")
        assertTrue(chat.edit(0, "c"))
        chat.settle()
        assertEquals(listOf("c", "fine"), chat.texts)
        assertFalse(chat.edit(1, "an answer is not edited"))
    }

    @Test
    fun `an error keeps the question, and it can be asked again`() = onOneThread {
        models.script = { throw damaged("Its codes are damaged.") }
        val chat = chat()
        chat.ask("a")
        assertEquals(Notice.Problem("Its codes are damaged.\nImport it again."), chat.state.value.notice)
        assertEquals(listOf("a"), chat.texts)
        models.script = { answer("fine") }
        assertTrue(chat.regenerate())
        chat.settle()
        assertEquals(listOf("a", "fine"), chat.texts)
        assertNull(chat.state.value.notice)
    }

    @Test
    fun `without a model nothing is sent, and the user is told`() = onOneThread {
        val holder = loadedHolder(models).also { it.close() }
        val chat = ChatPresenter(Conversations(folder), holder, { settings }, this) {}
        assertFalse(chat.send("a"))
        assertEquals(Notice.NoModel, chat.state.value.notice)
        assertFalse(chat.regenerate())
    }

    @Test
    fun `turns that were dropped, and answers that were cut, are told`() = onOneThread {
        val chat = chat()
        models.script = {
            emit(Reply.Dropped(2, "two messages"))
            answer("fine")
        }
        chat.ask("a")
        assertEquals(Notice.TurnsDropped(2), chat.state.value.notice)
        models.script = { answer("fine", Ending.LIMIT) }
        chat.ask("b")
        assertEquals(Notice.AnswerAtLimit, chat.state.value.notice)
        models.script = { answer("fine", Ending.CONTEXT) }
        chat.ask("c")
        assertEquals(Notice.ContextFull, chat.state.value.notice)
    }

    @Test
    fun `the system prompt goes first, and is left out with a word where the model knows none`() = onOneThread {
        settings = settings.copy(systemPrompt = "Be short.", maxNewTokens = 9)
        val chat = chat()
        chat.ask("a")
        assertEquals(Message(Role.SYSTEM, "Be short."), models.asked.last().messages.first())
        assertEquals(9, models.asked.last().limits.maxNewTokens)
        models.hasSystem = false
        chat.ask("b")
        assertEquals(Role.USER, models.asked.last().messages.first().role)
        assertEquals(Notice.SystemPromptUnused, chat.state.value.notice)
        assertTrue(chat.texts.none { it == "Be short." })
    }

    @Test
    fun `another conversation that is opened while an answer comes ends and keeps it`() = onOneThread {
        val chat = chat()
        chat.ask("first")
        val first = checkNotNull(chat.state.value.conversation)
        chat.new()
        chat.settle()
        assertEquals(emptyList(), chat.texts)
        models.script = { hang("half") }
        chat.send("second")
        until { chat.state.value.answer == "half" }
        chat.open(first.id)
        chat.settle()
        assertEquals(listOf("first", "fine"), chat.texts)
        val second = Conversations(folder).list().first { it.id != first.id }
        assertEquals(listOf("second", "half"), second.messages.map { it.content })
    }

    @Test
    fun `the policy stops an answer with its words`() = onOneThread {
        models.script = { hang("half") }
        val chat = chat()
        chat.send("a")
        until { chat.state.value.answer == "half" }
        chat.stop(Notice.Stopped(StopReason.MEMORY))
        chat.settle()
        assertEquals(Notice.Stopped(StopReason.MEMORY), chat.state.value.notice)
        assertEquals(listOf("a", "half"), chat.texts)
    }

    @Test
    fun `an answer that cannot be kept on disk can still be read, and the user is told`() = onOneThread {
        models.script = {
            folder.deleteRecursively()
            folder.writeText("a file where the folder was")
            answer("fine")
        }
        val chat = chat()
        chat.ask("a")
        assertEquals(listOf("a", "fine"), chat.texts)
        assertIs<Notice.Problem>(chat.state.value.notice)
    }

    @Test
    fun `a conversation is shared as text`() = onOneThread {
        val chat = chat()
        chat.ask("a")
        assertEquals("USER: a\n\nASSISTANT: fine", chat.transcript { it.name })
    }
}
