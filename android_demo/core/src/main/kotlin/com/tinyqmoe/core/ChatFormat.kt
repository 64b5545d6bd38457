package com.tinyqmoe.core

import java.time.LocalDate
import java.time.format.DateTimeFormatter
import java.util.Locale

enum class Role {
    SYSTEM,
    USER,
    ASSISTANT,
    ;

    /** The name that manifests and files have. */
    val word: String get() = name.lowercase(Locale.ROOT)
}

/** What somebody said in a conversation. */
data class Message(val role: Role, val content: String)

/** A piece of a conversation's text. [control]: whether it may hold control tokens; what was typed may not. */
data class ChatPiece(val text: String, val control: Boolean)

/**
 * The chat format of a model as six strings, `chat` of the manifest (docs/chat.md).
 *
 * @param strings by name. @param trims roles whose texts lose the spaces around them.
 */
class ChatFormat(private val strings: Map<String, String>, private val trims: Set<Role>) {
    /** Whether a conversation can have a system prompt. */
    val hasSystem: Boolean get() = "system_open" in strings

    /**
     * A conversation that ends with a user's message, ready for the answer. Messages alternate between user and
     * assistant, after a system prompt or none. Throws IllegalArgumentException for others.
     */
    fun render(messages: List<Message>, date: LocalDate): List<ChatPiece> {
        val turns = if (messages.firstOrNull()?.role == Role.SYSTEM) messages.drop(1) else messages
        val roles = listOf(Role.USER, Role.ASSISTANT)
        val alternate = turns.withIndex().all { (i, turn) -> turn.role == roles[i % 2] }
        require(alternate && turns.size % 2 == 1) { "A conversation alternates, and ends with a user's message." }
        val pieces = ArrayList<ChatPiece>()
        if (turns.size == messages.size) {
            pieces += string("without_system", date)
        } else {
            pieces += listOf(string("system_open", date), said(messages[0]), string("system_close", date))
        }
        for ((i, turn) in turns.withIndex()) {
            val after = if (turn.role == Role.USER) "user_to_assistant" else "assistant_to_user"
            pieces += listOf(said(turn), string(if (i == turns.lastIndex) "generation" else after, date))
        }
        return pieces
    }

    private fun string(name: String, date: LocalDate): ChatPiece {
        val text = requireNotNull(strings[name]) { "The chat format of this model has no $name." }
        return ChatPiece(DATE.replace(text) { strftime(it.groupValues[1], date) }, control = true)
    }

    private fun said(message: Message): ChatPiece {
        val text = message.content
        return ChatPiece(if (message.role in trims) text.trim(::isPythonSpace) else text, control = false)
    }

    private companion object {
        val DATE = Regex("""\{\{strftime:([\s\S]*?)\}\}""")
        val FORMS =
            mapOf('d' to "dd", 'm' to "MM", 'Y' to "yyyy", 'b' to "MMM", 'B' to "MMMM", 'a' to "EEE", 'A' to "EEEE")

        /** What Python's str.strip takes away, which is what templates use. */
        fun isPythonSpace(c: Char): Boolean = c.isWhitespace() || c == '\u0085'

        fun strftime(form: String, date: LocalDate): String =
            Regex("%(.)").replace(form) { match ->
                val pattern = FORMS[match.groupValues[1][0]]
                requireNotNull(pattern) { "The date's ${match.value} is not known here." }
                DateTimeFormatter.ofPattern(pattern, Locale.ENGLISH).format(date)
            }
    }
}
