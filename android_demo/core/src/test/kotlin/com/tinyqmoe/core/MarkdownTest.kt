package com.tinyqmoe.core

import org.junit.Assert.assertEquals
import org.junit.Test

class MarkdownTest {
    private fun plain(text: String) = listOf(Span(text, Span.Style.PLAIN))

    @Test
    fun blocksAreTold() {
        val text = "# Kites\nOne\ntwo\n\n- a\n  - b\n2. c\n```kotlin\nval x = \"*y*\"\n\n```\nend"
        val expected =
            listOf(
                Block.Heading(1, plain("Kites")),
                Block.Paragraph(plain("One\ntwo")),
                Block.Item("•", 0, plain("a")),
                Block.Item("•", 1, plain("b")),
                Block.Item("2.", 0, plain("c")),
                Block.Code("kotlin", "val x = \"*y*\"\n"),
                Block.Paragraph(plain("end")),
            )
        assertEquals(expected, Markdown.blocks(text))
    }

    @Test
    fun spansAreTold() {
        val expected =
            listOf(
                Span("a ", Span.Style.PLAIN), Span("b c", Span.Style.BOLD), Span(" ", Span.Style.PLAIN), Span("d", Span.Style.ITALIC),
                Span(" ", Span.Style.PLAIN), Span("*e*", Span.Style.CODE), Span(" ", Span.Style.PLAIN), Span("f", Span.Style.BOLD),
                Span(" ", Span.Style.PLAIN), Span("g", Span.Style.ITALIC),
            )
        assertEquals(expected, Markdown.spans("a **b c** *d* `*e*` __f__ _g_"))
    }

    @Test
    fun whatHasNoPartnerIsText() {
        for (text in listOf("2 * 3 * 4", "**open", "a_b_c", "`", "* ", "#kite", "", "snake_case_name")) {
            assertEquals(if (text.isBlank()) emptyList<Span>() else plain(text), Markdown.spans(text))
        }
        assertEquals(listOf(Block.Code("", "x")), Markdown.blocks("```\nx"))
        assertEquals(emptyList<Block>(), Markdown.blocks("\n \n"))
    }

    @Test
    fun everyBeginningOfATextIsRead() {
        val text = "# A\n- **b** `c`\n```\nd\n```\n*e*"
        for (n in 0..text.length) Markdown.blocks(text.take(n))
    }
}
