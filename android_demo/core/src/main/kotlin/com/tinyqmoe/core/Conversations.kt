package com.tinyqmoe.core

import java.io.File

/**
 * A conversation. [changed] is the time of its last change, in milliseconds since 1970. [messages] holds no system
 * prompt: that is a setting.
 */
data class Conversation(val id: String, val title: String, val changed: Long, val messages: List<Message>)

/**
 * Several conversations on disk, a JSON file each in [folder]. Files are replaced whole, so a crash loses nothing that
 * was there. A file that cannot be read stays, and is named by [unreadable].
 */
class Conversations(private val folder: File, private val now: () -> Long = System::currentTimeMillis) {
    /** All, the last changed first. */
    fun list(): List<Conversation> = TODO()

    /** Names of files that are no conversations. */
    fun unreadable(): List<String> = TODO()

    fun get(id: String): Conversation? = TODO()

    /** A new conversation, which is on disk when something is said in it. */
    fun create(): Conversation = TODO()

    /** Adds a message; the first one of a user gives the title where there is none. */
    fun add(conversation: Conversation, message: Message): Conversation = TODO()

    /** Replaces the user's message number [index] and forgets what followed it, to say it in other words. */
    fun edit(conversation: Conversation, index: Int, content: String): Conversation = TODO()

    /** Forgets the last answer, to hear another. */
    fun retry(conversation: Conversation): Conversation = TODO()

    fun rename(conversation: Conversation, title: String): Conversation = TODO()

    fun delete(id: String) {
        TODO()
    }
}
