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
    /** The blocks of a text; one that has not come to its end yet is read as far as it goes. */
    fun blocks(text: String): List<Block> = TODO()
}
