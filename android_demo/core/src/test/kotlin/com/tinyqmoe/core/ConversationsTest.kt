package com.tinyqmoe.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import java.io.File

class ConversationsTest {
    private val folder = scratch("conversations")
    private var time = 0L
    private val conversations = Conversations(folder) { ++time }

    private fun said(vararg texts: String): Conversation =
        texts.foldIndexed(conversations.create()) { i, all, text ->
            conversations.add(all, Message(if (i % 2 == 0) Role.USER else Role.ASSISTANT, text))
        }

    @Test
    fun severalAreKept() {
        assertEquals(emptyList<Conversation>(), conversations.list())
        conversations.create()
        val first = said("What is a kite?\nSay it.", "A toy \"é🪁\".")
        val second = said("Hi")
        assertEquals("What is a kite?", first.title)
        assertEquals(listOf(second, first), Conversations(folder).list())
        assertEquals(first, conversations.get(first.id))
        assertEquals(listOf(first.id, second.id), conversations.add(first, Message(Role.USER, "More")).let { conversations.list().map { it.id } })
    }

    @Test
    fun aTurnIsSaidAgain() {
        val all = said("a", "b", "c", "d")
        assertEquals(listOf("a", "b", "c"), conversations.retry(all).messages.map { it.content })
        val edited = conversations.edit(all, 0, "A")
        assertEquals(listOf("A"), conversations.get(edited.id)!!.messages.map { it.content })
        assertEquals(edited, conversations.retry(edited))
        assertThrows(IllegalArgumentException::class.java) { conversations.edit(all, 1, "x") }
    }

    @Test
    fun titlesAreShortAndChangeable() {
        val long = said("word ".repeat(30))
        assertTrue(long.title, long.title.length <= 40 && long.title.endsWith("…"))
        assertEquals("Kites", conversations.get(conversations.rename(long, "Kites").id)!!.title)
    }

    @Test
    fun whatIsDeletedIsGone() {
        val one = said("a")
        conversations.delete(one.id)
        assertNull(conversations.get(one.id))
        assertEquals(0, folder.listFiles()!!.size)
    }

    @Test
    fun aDamagedFileIsNamedAndStays() {
        val good = said("a")
        for ((name, text) in listOf("cut.json" to "{\"version\": 1", "other.json" to "{\"version\": 2}", "role.json" to
            "{\"version\": 1, \"title\": \"\", \"changed\": 1, \"messages\": [{\"role\": \"x\", \"content\": \"\"}]}")) {
            File(folder, name).writeText(text)
        }
        assertEquals(listOf(good.id), conversations.list().map { it.id })
        assertEquals(setOf("cut.json", "other.json", "role.json"), conversations.unreadable().toSet())
        assertEquals(4, folder.listFiles()!!.size)
    }

    @Test
    fun aWriteThatFailsLosesNothing() {
        val one = said("a")
        File(folder, ".${one.id}.json.partial").mkdirs() // where the new text would be written first
        assertThrows(java.io.IOException::class.java) { conversations.add(one, Message(Role.ASSISTANT, "b")) }
        assertEquals(one, conversations.get(one.id))
    }

    @Test
    fun settingsAreKept() {
        val file = File(folder, "settings/settings.json")
        assertEquals(Settings(), SettingsFile(file).read())
        val set = Settings("Be kind. é", Sampling(0.5, 40, 0.95, Long.MIN_VALUE), 99, "kite")
        SettingsFile(file).write(set)
        assertEquals(set, SettingsFile(file).read())
        for (text in listOf("{", "{}", file.readText().replace("0.95", "95"))) {
            file.writeText(text)
            assertEquals(Settings(), SettingsFile(file).read())
            assertEquals(text, File(file.path + ".damaged").readText())
        }
    }

    @Test
    fun aLoadThatDidNotEndIsKnown() {
        val file = File(folder, "guard/loading")
        val guard = LoadGuard(file)
        assertNull(guard.crashedLast)
        guard.begin("kite")
        assertEquals("kite", LoadGuard(file).crashedLast) // a new start of the app
        guard.finished()
        assertNull(LoadGuard(file).crashedLast)
    }
}
