package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.Conversation
import com.tinyqmoe.core.Conversations
import com.tinyqmoe.core.Ending
import com.tinyqmoe.core.Message
import com.tinyqmoe.core.PolicyEvent
import com.tinyqmoe.core.Reply
import com.tinyqmoe.core.ReplyLimits
import com.tinyqmoe.core.Role
import com.tinyqmoe.core.SessionStats
import com.tinyqmoe.core.Settings
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import java.io.IOException

/**
 * The chat as it is shown.
 *
 * @property answer what came of the answer that is computed now, or null where none is.
 * @property reading how much of the prompt was read, before the first text.
 * @property stats figures of the last answer, while it comes and after it.
 */
data class ChatState(
    val conversation: Conversation? = null,
    val answer: String? = null,
    val reading: Reply.Reading? = null,
    val stats: SessionStats? = null,
    val notice: Notice? = null,
) {
    val isAnswering: Boolean get() = answer != null

    /** All that is shown, the answer that comes included. */
    val messages: List<Message>
        get() {
            val said = conversation?.messages.orEmpty()
            return if (answer == null) said else said + Message(Role.ASSISTANT, answer)
        }

    /** Whether another answer can be asked for: the last one was given, or failed. */
    val canRetry: Boolean get() = !isAnswering && !conversation?.messages.isNullOrEmpty()
}

/**
 * One conversation with the model: send, stop, regenerate, edit. All calls come from the thread of [scope]; one that
 * comes while an answer is computed, such as a second tap, does nothing.
 *
 * @param settings are read when an answer begins.
 * @param tell gets GenerationStarted and GenerationEnded, for the memory policy.
 */
class ChatPresenter(
    private val conversations: Conversations,
    private val holder: ModelHolder,
    private val settings: () -> Settings,
    private val scope: CoroutineScope,
    private val tell: (PolicyEvent) -> Unit,
) {
    private val current = MutableStateFlow(ChatState())
    private var job: Job? = null

    /** How often the last question was answered: it moves the seed, so that another answer is another one. */
    private var repeats = 0L

    val state: StateFlow<ChatState> = current.asStateFlow()

    /** Asks a question. Returns whether it was taken; if not, it stays where it was typed. */
    fun send(text: String): Boolean {
        if (text.isBlank()) return false
        return answer(repeat = 0) { conversations.add(it, Message(Role.USER, text)) }
    }

    /** Another answer to the last question: instead of the last answer, or after one that failed. */
    fun regenerate(): Boolean {
        if (!current.value.canRetry) return false
        return answer(repeats + 1) { if (it.messages.last().role == Role.ASSISTANT) conversations.retry(it) else it }
    }

    /** Says the user's message number [index] in other words, and forgets what followed it. */
    fun edit(index: Int, text: String): Boolean {
        if (text.isBlank() || current.value.conversation?.messages?.getOrNull(index)?.role != Role.USER) return false
        return answer(repeat = 0) { conversations.edit(it, index, text) }
    }

    /** Stops the answer; what came of it stays. [why] is told, where it was not the user. */
    fun stop(why: Notice? = null) {
        job?.cancel()
        if (why != null) notice(why)
    }

    /** Shows another conversation. */
    fun open(id: String) = change { conversations.get(id) }

    fun new() = change { null }

    /** Leaves a conversation that is deleted. */
    fun closed(id: String) {
        if (current.value.conversation?.id == id) new()
    }

    /** Takes over a new title of the conversation that is shown. */
    fun renamed(conversation: Conversation) =
        current.update { if (it.conversation?.id == conversation.id) it.copy(conversation = conversation) else it }

    fun notice(notice: Notice?) = current.update { it.copy(notice = notice) }

    /** The conversation as text, to share. [name] names who speaks. */
    fun transcript(name: (Role) -> String): String =
        current.value.messages.joinToString("\n\n") { "${name(it.role)}: ${it.content}" }

    /** Waits until nothing is answered or opened. */
    suspend fun settle() {
        job?.join()
    }

    private fun change(conversation: () -> Conversation?) {
        val before = job
        job = scope.launch {
            before?.cancelAndJoin()
            repeats = 0
            current.value = ChatState(withContext(Dispatchers.IO) { conversation() })
        }
    }

    private fun answer(repeat: Long, prepare: (Conversation) -> Conversation): Boolean {
        if (job?.isActive == true) return false
        val ready = holder.state.value as? ModelState.Ready
        if (ready == null) {
            notice(Notice.NoModel)
            return false
        }
        repeats = repeat
        current.update { it.copy(answer = "", reading = null, stats = null, notice = null) }
        job = scope.launchSurely { answer(ready.model, prepare) }
        return true
    }

    private suspend fun answer(model: LoadedModel, prepare: (Conversation) -> Conversation) {
        tell(PolicyEvent.GenerationStarted)
        try {
            val asked = withContext(Dispatchers.IO) { prepare(current.value.conversation ?: conversations.create()) }
            current.update { it.copy(conversation = asked) }
            collect(model, asked)
        } catch (error: Exception) {
            notice(noticeOf(error))
        } finally {
            withContext(NonCancellable) { keep() }
            tell(PolicyEvent.GenerationEnded)
        }
    }

    private suspend fun collect(model: LoadedModel, asked: Conversation) {
        val chosen = settings()
        val system = chosen.systemPrompt.takeIf { it.isNotBlank() && model.hasSystem }
        if (system == null && chosen.systemPrompt.isNotBlank()) notice(Notice.SystemPromptUnused)
        val messages = listOfNotNull(system?.let { Message(Role.SYSTEM, it) }) + asked.messages
        val sampling = chosen.sampling.copy(seed = chosen.sampling.seed + repeats)
        model.reply(messages, sampling, ReplyLimits(chosen.maxNewTokens)).collect { show(it, model.stats.value) }
    }

    private fun show(reply: Reply, stats: SessionStats) =
        current.update {
            when (reply) {
                is Reply.Dropped -> it.copy(notice = Notice.TurnsDropped(reply.messages))
                is Reply.Reading -> it.copy(reading = reply)
                is Reply.Text -> it.copy(answer = it.answer.orEmpty() + reply.text, reading = null, stats = stats)
                is Reply.Done -> it.copy(stats = reply.stats, notice = noticeOf(reply.ending) ?: it.notice)
            }
        }

    /** Puts what came of the answer into the conversation. */
    private suspend fun keep() {
        val (conversation, answer) = current.value
        var kept = conversation
        if (conversation != null && !answer.isNullOrEmpty()) {
            val message = Message(Role.ASSISTANT, answer)
            try {
                kept = withContext(Dispatchers.IO) { conversations.add(conversation, message) }
            } catch (error: IOException) {
                kept = conversation.copy(messages = conversation.messages + message) // it can still be read and copied
                notice(noticeOf(error))
            }
        }
        current.update { it.copy(conversation = kept, answer = null, reading = null) }
    }
}

private fun noticeOf(ending: Ending): Notice? =
    when (ending) {
        Ending.END -> null
        Ending.LIMIT -> Notice.AnswerAtLimit
        Ending.CONTEXT -> Notice.ContextFull
    }
