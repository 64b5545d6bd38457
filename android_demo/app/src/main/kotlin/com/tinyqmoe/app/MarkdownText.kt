package com.tinyqmoe.app

import android.content.Context
import android.graphics.Typeface
import android.text.SpannableStringBuilder
import android.text.Spanned
import android.text.style.BackgroundColorSpan
import android.text.style.LeadingMarginSpan
import android.text.style.RelativeSizeSpan
import android.text.style.StyleSpan
import android.text.style.TypefaceSpan
import android.util.LruCache
import com.tinyqmoe.core.Block
import com.tinyqmoe.core.Markdown
import com.tinyqmoe.core.Span

/** Markdown as text that a TextView shows. */
class MarkdownText(context: Context) {
    private val codeColor = context.getColor(R.color.code_background)
    private val indent = (context.resources.displayMetrics.density * INDENT_DP).toInt()

    // A list asks for all that it shows whenever a token comes.
    private val texts = object : LruCache<String, CharSequence>(MAX_TEXTS) {
        override fun create(key: String): CharSequence = render(key)
    }

    fun of(text: String): CharSequence = texts[text]

    private fun render(text: String): CharSequence {
        val out = SpannableStringBuilder()
        Markdown.blocks(text).forEachIndexed { i, block ->
            if (i > 0) out.append(if (block is Block.Item) "\n" else "\n\n")
            append(out, block)
        }
        return out
    }

    private fun append(out: SpannableStringBuilder, block: Block) =
        when (block) {
            is Block.Paragraph -> out.styled { append(block.spans) }
            is Block.Heading -> out.styled(StyleSpan(Typeface.BOLD), RelativeSizeSpan(HEADING_SIZE)) { append(block.spans) }
            is Block.Item ->
                out.styled(LeadingMarginSpan.Standard(indent * block.depth, indent * (block.depth + 1))) {
                    append(block.marker).append(' ')
                    append(block.spans)
                }
            is Block.Code -> out.styled(TypefaceSpan("monospace"), BackgroundColorSpan(codeColor)) { append(block.text) }
        }

    private fun SpannableStringBuilder.append(spans: List<Span>) =
        spans.forEach { span ->
            when (span.style) {
                Span.Style.PLAIN -> append(span.text)
                Span.Style.BOLD -> styled(StyleSpan(Typeface.BOLD)) { append(span.text) }
                Span.Style.ITALIC -> styled(StyleSpan(Typeface.ITALIC)) { append(span.text) }
                Span.Style.CODE -> styled(TypefaceSpan("monospace"), BackgroundColorSpan(codeColor)) { append(span.text) }
            }
        }

    private fun SpannableStringBuilder.styled(vararg styles: Any, text: SpannableStringBuilder.() -> Unit) {
        val begin = length
        text()
        styles.forEach { setSpan(it, begin, length, Spanned.SPAN_EXCLUSIVE_EXCLUSIVE) }
    }

    private companion object {
        const val INDENT_DP = 16
        const val MAX_TEXTS = 32
        const val HEADING_SIZE = 1.2f
    }
}
