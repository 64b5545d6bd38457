package com.tinyqmoe.core

import java.util.regex.Pattern

/**
 * The patterns of tokenizer.json (Oniguruma's) for java.util.regex, which is another program on a JVM and on Android:
 * what the three understand differently is spelled out.
 */
internal object Patterns {
    /** White space as Unicode's, and so the library's; `\s` is ASCII only on a JVM. */
    private const val SPACE = "\\t-\\r\\x85\\p{Z}"
    private val CASELESS = Regex("""\(\?i:([^()]*)\)""")
    private val PART = Regex("""\\[\s\S]|[\[\]]""")

    const val GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

    /** Throws [java.util.regex.PatternSyntaxException]. */
    fun of(pattern: String): Pattern {
        val spelled = CASELESS.replace(pattern) { "(?:${it.groupValues[1].map(::bothCases).joinToString("")})" }
        var inClass = false
        val source =
            PART.replace(spelled) { match ->
                when (match.value) {
                    "[" -> "[".also { inClass = true }
                    "]" -> "]".also { inClass = false }
                    "\\s" -> if (inClass) SPACE else "[$SPACE]"
                    "\\S" -> if (inClass) match.value else "[^$SPACE]"
                    else -> match.value
                }
            }
        // In Oniguruma `^` and `$` stand at every line, and only a line feed ends one.
        return Pattern.compile(source, Pattern.MULTILINE or Pattern.UNIX_LINES)
    }

    private fun bothCases(c: Char): String = if (c.isLetter()) "[${c.lowercaseChar()}${c.uppercaseChar()}]" else "$c"

    /** The text cut at every match: what matches, and what lies between. */
    fun isolate(text: String, pattern: Pattern): List<String> {
        val parts = ArrayList<String>()
        val matcher = pattern.matcher(text)
        var end = 0
        while (matcher.find()) {
            if (matcher.start() > end) parts += text.substring(end, matcher.start())
            if (matcher.end() > matcher.start()) parts += matcher.group()
            end = matcher.end()
        }
        if (end < text.length) parts += text.substring(end)
        return parts
    }
}
