package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.Conversations
import com.tinyqmoe.core.Settings
import kotlinx.coroutines.CoroutineScope
import org.junit.Test
import kotlin.test.assertEquals
import kotlin.test.assertNull

class ConversationsPresenterTest {
    private val stored = Conversations(temporaryFolder())
    private val models = FakeModels()

    private suspend fun CoroutineScope.chat() = ChatPresenter(stored, loadedHolder(models), { Settings() }, this) {}

    private suspend fun ChatPresenter.ask(text: String) {
        send(text)
        settle()
    }

    @Test
    fun `conversations are listed, renamed and opened`() = onOneThread {
        val chat = chat()
        val list = ConversationsPresenter(stored, chat, this)
        chat.ask("first")
        chat.new()
        chat.settle()
        chat.ask("second")
        list.refresh()
        until { list.state.value.conversations.size == 2 }
        val first = list.state.value.conversations.single { it.messages.first().content == "first" }
        list.rename(first, "  A title ")
        until { list.state.value.conversations.any { it.title == "A title" } }
        list.open(first.id)
        chat.settle()
        assertEquals("A title", chat.state.value.conversation?.title)
        list.rename(first, " ")
        assertEquals("A title", stored.get(first.id)?.title)
    }

    @Test
    fun `a new title of the conversation that is shown is shown`() = onOneThread {
        val chat = chat()
        val list = ConversationsPresenter(stored, chat, this)
        chat.ask("first")
        list.rename(checkNotNull(chat.state.value.conversation), "A title")
        until { chat.state.value.conversation?.title == "A title" }
        assertEquals(2, chat.state.value.messages.size)
    }

    @Test
    fun `a conversation that is deleted while it is answered is gone`() = onOneThread {
        models.script = { hang("half") }
        val chat = chat()
        val list = ConversationsPresenter(stored, chat, this)
        chat.send("first")
        until { chat.state.value.answer == "half" }
        list.delete(checkNotNull(chat.state.value.conversation).id)
        until { stored.list().isEmpty() && chat.state.value.conversation == null }
        assertNull(chat.state.value.answer)
    }
}
