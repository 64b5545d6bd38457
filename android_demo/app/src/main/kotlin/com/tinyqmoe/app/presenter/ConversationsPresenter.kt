package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.Conversation
import com.tinyqmoe.core.Conversations
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import java.io.IOException

/** @property unreadable names of files that are no conversations. */
data class ConversationsState(
    val conversations: List<Conversation> = emptyList(),
    val unreadable: List<String> = emptyList(),
    val notice: Notice? = null,
)

/** The list of conversations. It can be used while the model loads. All calls come from the thread of [scope]. */
class ConversationsPresenter(
    private val conversations: Conversations,
    private val chat: ChatPresenter,
    private val scope: CoroutineScope,
) {
    private val current = MutableStateFlow(ConversationsState())
    val state: StateFlow<ConversationsState> = current.asStateFlow()

    fun refresh() = change {}

    fun open(id: String) = chat.open(id)

    /** Gives a conversation another title; a blank one changes nothing. */
    fun rename(conversation: Conversation, title: String) {
        if (title.isBlank()) return
        change { chat.renamed(onDisk { conversations.rename(conversation, title.trim()) }) }
    }

    fun delete(id: String) {
        chat.closed(id)
        change {
            chat.settle() // an answer that was being computed is kept before it goes
            onDisk { conversations.delete(id) }
        }
    }

    private fun change(step: suspend () -> Unit) {
        scope.launch {
            val notice =
                try {
                    step()
                    null
                } catch (error: IOException) {
                    noticeOf(error)
                }
            current.value = onDisk { ConversationsState(conversations.list(), conversations.unreadable(), notice) }
        }
    }

    private suspend fun <T> onDisk(step: () -> T): T = withContext(Dispatchers.IO) { step() }
}
