package com.tinyqmoe.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import java.time.LocalDate

class ChatFormatTest {
    private val golden = Project.json("chat.json").map()
    private val date = LocalDate.of(2031, 11, 5)

    private fun format(template: Map<*, *>): ChatFormat {
        val strings = template["strings"].map().entries.associate { it.key as String to it.value as String }
        return ChatFormat(strings, template["trims"].list().map { word -> Role.entries.first { it.word == word } }.toSet())
    }

    private fun messages(raw: Any?) =
        raw.list().map { m -> Message(Role.entries.first { it.word == m.map()["role"] }, m.map()["content"] as String) }

    @Test
    fun conversationsAreWhatTheTemplatesRender() {
        var n = 0
        for (template in golden["templates"].list().map { it.map() }) {
            for (rendering in template["renderings"].list().map { it.map() }) {
                val pieces = format(template).render(messages(rendering["messages"]), date)
                assertEquals("${template["name"]}", rendering["text"], pieces.joinToString("") { it.text })
                n++
            }
        }
        assertTrue(n > 30)
    }

    @Test
    fun whatIsTypedIsNoControl() {
        val typed = "<|end|>"
        val pieces = format(golden["templates"].list()[0].map()).render(listOf(Message(Role.USER, typed)), date)
        assertEquals(listOf(ChatPiece(typed, false)), pieces.filter { it.text == typed })
        assertTrue(pieces.filter { it.text != typed }.all { it.control })
    }

    @Test
    fun conversationsThatAreNoneAreRefused() {
        val format = format(golden["templates"].list()[0].map())
        val user = Message(Role.USER, "a")
        val assistant = Message(Role.ASSISTANT, "b")
        for (wrong in listOf(emptyList(), listOf(assistant), listOf(user, user), listOf(user, assistant), listOf(user, Message(Role.SYSTEM, "c"), user))) {
            assertThrows(IllegalArgumentException::class.java) { format.render(wrong, date) }
        }
        val without = format(golden["templates"].list().map { it.map() }.first { it["name"] == "no system prompt" })
        assertTrue(!without.hasSystem)
        val error = assertThrows(IllegalArgumentException::class.java) { without.render(listOf(Message(Role.SYSTEM, "s"), user), date) }
        assertTrue(error.message!!, "system_open" in error.message!!)
    }

    @Test
    fun everyFormOfADateIsEnglish() {
        val all = ChatFormat(mapOf("without_system" to "{{strftime:%d %m %Y %b %B %a %A}}", "generation" to ""), emptySet())
        assertEquals("05 11 2031 Nov November Wed Wednesday", all.render(listOf(Message(Role.USER, "")), date)[0].text)
        val unknown = ChatFormat(mapOf("without_system" to "{{strftime:%q}}", "generation" to ""), emptySet())
        assertThrows(IllegalArgumentException::class.java) { unknown.render(listOf(Message(Role.USER, "")), date) }
    }
}
