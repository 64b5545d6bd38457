package com.tinyqmoe.core

import java.time.LocalDate

enum class Role {
    SYSTEM,
    USER,
    ASSISTANT,
    ;

    /** The name that manifests and files have. */
    val word: String get() = name.lowercase()
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
    fun render(messages: List<Message>, date: LocalDate): List<ChatPiece> = TODO()
}
