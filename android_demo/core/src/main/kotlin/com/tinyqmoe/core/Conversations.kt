package com.tinyqmoe.core

import java.io.File
import java.io.IOException
import java.util.UUID

/**
 * A conversation. [changed] is the time of its last change, in milliseconds since 1970. [messages] holds no system
 * prompt: that is a setting.
 */
data class Conversation(val id: String, val title: String, val changed: Long, val messages: List<Message>)

/**
 * Several conversations on disk, a JSON file each in [folder]. Files are replaced whole, so a crash loses nothing that
 * was there. A file that cannot be read stays, and is named by [unreadable]. Changes throw IOException on a full disk.
 */
class Conversations(private val folder: File, private val now: () -> Long = System::currentTimeMillis) {
    /** All, the last changed first. */
    fun list(): List<Conversation> = files().mapNotNull(::read).sortedByDescending { it.changed }

    /** Names of files that are no conversations. */
    fun unreadable(): List<String> = files().filter { read(it) == null }.map { it.name }

    fun get(id: String): Conversation? = read(fileOf(id))

    /** A new conversation, which is on disk when something is said in it. */
    fun create(): Conversation = Conversation(UUID.randomUUID().toString(), "", now(), emptyList())

    /** Adds a message; the first one of a user gives the title where there is none. */
    fun add(conversation: Conversation, message: Message): Conversation {
        val title = conversation.title.ifEmpty { if (message.role == Role.USER) titleOf(message.content) else "" }
        return write(conversation.copy(title = title, messages = conversation.messages + message))
    }

    /** Replaces the user's message number [index] and forgets what followed it, to say it in other words. */
    fun edit(conversation: Conversation, index: Int, content: String): Conversation {
        require(conversation.messages[index].role == Role.USER) { "Only a user's message can be edited." }
        return write(conversation.copy(messages = conversation.messages.take(index) + Message(Role.USER, content)))
    }

    /** Forgets the last answer, to hear another. */
    fun retry(conversation: Conversation): Conversation =
        if (conversation.messages.lastOrNull()?.role != Role.ASSISTANT) conversation
        else write(conversation.copy(messages = conversation.messages.dropLast(1)))

    fun rename(conversation: Conversation, title: String): Conversation = write(conversation.copy(title = title))

    fun delete(id: String) {
        fileOf(id).delete()
    }

    private fun titleOf(text: String): String {
        val line = text.trim().lineSequence().first()
        return if (line.length <= MAX_TITLE) line else line.take(MAX_TITLE - 1).trimEnd() + "…"
    }

    private fun write(conversation: Conversation): Conversation {
        val changed = conversation.copy(changed = now())
        val messages = changed.messages.map { mapOf("role" to it.role.word, "content" to it.content) }
        val about = mapOf("version" to VERSION, "title" to changed.title, "changed" to changed.changed)
        AtomicFiles.write(fileOf(changed.id), Json.write(about + ("messages" to messages)))
        return changed
    }

    private fun read(file: File): Conversation? {
        val problems = ArrayList<String>()
        val fields =
            try {
                Fields("", Json.parse(file.readText()), problems)
            } catch (error: IOException) {
                return null
            } catch (error: JsonError) {
                return null
            }
        if (fields.count("version") != VERSION) return null
        val messages =
            fields.list("messages").map { message ->
                val role = Role.entries.firstOrNull { it.word == message.text("role") } ?: return null
                Message(role, message.text("content"))
            }
        val found = Conversation(file.name.removeSuffix(SUFFIX), fields.text("title"), fields.long("changed"), messages)
        return found.takeIf { problems.isEmpty() }
    }

    private fun files(): List<File> = folder.listFiles { file -> file.name.endsWith(SUFFIX) }.orEmpty().toList()

    private fun fileOf(id: String) = File(folder, id + SUFFIX)

    private companion object {
        const val VERSION = 1
        const val SUFFIX = ".json"
        const val MAX_TITLE = 40
    }
}
