package com.tinyqmoe.core

/** A part of a line. */
data class Span(val text: String, val style: Style) {
    enum class Style { PLAIN, BOLD, ITALIC, CODE }
}

/** A block of text. */
sealed interface Block {
    data class Paragraph(val spans: List<Span>) : Block

    /** [level] 1 to 6. */
    data class Heading(val level: Int, val spans: List<Span>) : Block

    /** [marker] is a bullet, or a number with its dot; [depth] counts from 0. */
    data class Item(val marker: String, val depth: Int, val spans: List<Span>) : Block

    data class Code(val language: String, val text: String) : Block
}

/** The simple part of Markdown that models write. Nothing is an error: what is not known stays text. */
object Markdown {
    private val FENCE = Regex("^\\s*```\\s*(\\S*).*$")
    private val HEADING = Regex("^(#{1,6})\\s+(.*)$")
    private val ITEM = Regex("^(\\s*)([-*+]|[0-9]{1,9}[.)])\\s+(.*)$")
    private const val MARKED = "(\\S(?:.*?\\S)??)"
    private val SPAN = Regex("(`+)(.+?)\\1|\\*\\*$MARKED\\*\\*|__${MARKED}__|\\*$MARKED\\*|\\b_${MARKED}_\\b")
    private const val BULLET = "•"

    /** The blocks of a text; one that has not come to its end yet is read as far as it goes. */
    fun blocks(text: String): List<Block> {
        val blocks = ArrayList<Block>()
        val paragraph = ArrayList<String>()

        fun endParagraph() {
            if (paragraph.isNotEmpty()) blocks += Block.Paragraph(spans(paragraph.joinToString("\n")))
            paragraph.clear()
        }
        val lines = text.lines().iterator()
        while (lines.hasNext()) {
            val line = lines.next()
            val fence = FENCE.matchEntire(line)
            val block = if (fence != null) code(fence.groupValues[1], lines) else headingOrItem(line)
            if (block != null || line.isBlank()) endParagraph()
            if (block != null) blocks += block else if (line.isNotBlank()) paragraph += line.trim()
        }
        endParagraph()
        return blocks
    }

    private fun code(language: String, lines: Iterator<String>): Block {
        val code = ArrayList<String>()
        while (lines.hasNext()) {
            val line = lines.next()
            if (line.trim() == "```") break
            code += line
        }
        return Block.Code(language, code.joinToString("\n"))
    }

    private fun headingOrItem(line: String): Block? {
        HEADING.matchEntire(line)?.destructured?.let { (marks, content) ->
            return Block.Heading(marks.length, spans(content.trim()))
        }
        val (space, marker, content) = ITEM.matchEntire(line)?.destructured ?: return null
        val depth = space.sumOf { c -> if (c == '\t') 4L else 1L }.toInt() / 2
        return Block.Item(if (marker[0].isDigit()) marker.dropLast(1) + "." else BULLET, depth, spans(content.trim()))
    }

    /** The parts of a text; marks that have no partner are text. */
    fun spans(text: String): List<Span> {
        val spans = ArrayList<Span>()
        var end = 0
        for (match in SPAN.findAll(text)) {
            if (match.range.first > end) spans += Span(text.substring(end, match.range.first), Span.Style.PLAIN)
            val (_, code, bold, bold2, italic, italic2) = match.destructured
            spans +=
                when {
                    code.isNotEmpty() -> Span(code.trim().ifEmpty { code }, Span.Style.CODE)
                    (bold + bold2).isNotEmpty() -> Span(bold + bold2, Span.Style.BOLD)
                    else -> Span(italic + italic2, Span.Style.ITALIC)
                }
            end = match.range.last + 1
        }
        if (end < text.length) spans += Span(text.substring(end), Span.Style.PLAIN)
        return spans
    }
}
