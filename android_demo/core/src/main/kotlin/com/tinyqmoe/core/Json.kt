package com.tinyqmoe.core

/** A text that is no JSON, with the place where it stops being so. */
class JsonError(message: String) : Exception(message)

/** A number as it is spelled: a digest of the text must not depend on how a platform prints a Double. */
class JsonNumber(val spelling: String) {
    /** The number as an integer, or null where it is none, or has more than 64 bits. */
    fun toLongOrNull(): Long? = spelling.toLongOrNull()

    fun toDouble(): Double = spelling.toDouble()

    override fun equals(other: Any?) = other is JsonNumber && other.spelling == spelling

    override fun hashCode() = spelling.hashCode()

    override fun toString() = spelling
}

/**
 * JSON as RFC 8259 has it, as plain values: `Map<String, Any?>` in the order of the text, `List<Any?>`, `String`,
 * [JsonNumber], `Boolean` and null.
 *
 * It is here because Android's org.json is not on a JVM, and takes more than JSON.
 */
object Json {
    /** The deepest nesting that is read, of objects and lists. */
    const val MAX_DEPTH = 100

    /** The value of a whole text. Throws [JsonError]. */
    fun parse(text: String): Any? = JsonReader(text).document()

    /** One line of JSON. Values may also be `Int`, `Long`, and finite `Double`s. */
    fun write(value: Any?): String = StringBuilder().also { write(value, it) }.toString()

    private fun write(value: Any?, out: StringBuilder) {
        when (value) {
            null, is Boolean, is Int, is Long, is JsonNumber -> out.append(value)
            is Double -> out.append(value.also { require(it.isFinite()) { "JSON has no $it" } })
            is String -> quote(value, out)
            is List<*> -> join(value, "[", "]", out) { write(it, out) }
            is Map<*, *> -> join(value.entries, "{", "}", out) { (name, item) ->
                quote(name as String, out)
                out.append(": ")
                write(item, out)
            }
            else -> throw IllegalArgumentException("JSON has no ${value::class.simpleName}")
        }
    }

    private fun <T> join(items: Iterable<T>, begin: String, end: String, out: StringBuilder, item: (T) -> Unit) {
        out.append(begin)
        for ((i, value) in items.withIndex()) {
            if (i > 0) out.append(", ")
            item(value)
        }
        out.append(end)
    }

    /** Only ASCII comes out, as with Python's `json.dumps`: the digest of a manifest is of that form. */
    private fun quote(text: String, out: StringBuilder) {
        out.append('"')
        for (c in text) {
            when (c) {
                '"' -> out.append("\\\"")
                '\\' -> out.append("\\\\")
                '\n' -> out.append("\\n")
                '\r' -> out.append("\\r")
                '\t' -> out.append("\\t")
                '\b' -> out.append("\\b")
                '\u000c' -> out.append("\\f")
                in ' '..'~' -> out.append(c)
                else -> out.append("\\u").append(c.code.toString(16).padStart(4, '0'))
            }
        }
        out.append('"')
    }
}

/** A reader of one text. */
private class JsonReader(private val text: String) {
    private var at = 0
    private var depth = 0

    fun document(): Any? {
        val value = value()
        if (skipSpace() != END) fail("something follows the value")
        return value
    }

    private fun value(): Any? =
        when (val c = skipSpace()) {
            '{' -> nested { members() }
            '[' -> nested { items() }
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> if (c == '-' || c in '0'..'9') number() else fail("no value begins here")
        }

    private fun <T> nested(read: () -> T): T {
        if (++depth > Json.MAX_DEPTH) fail("more than ${Json.MAX_DEPTH} levels of nesting")
        at++
        return read().also { depth-- }
    }

    private fun members(): Map<String, Any?> {
        val members = LinkedHashMap<String, Any?>()
        if (skipSpace() == '}') return members.also { at++ }
        do {
            if (skipSpace() != '"') fail("a name in quotes is missing")
            val name = string()
            expect(':')
            if (name in members) fail("the name \"$name\" is there twice")
            members[name] = value()
        } while (goesOn('}'))
        return members
    }

    private fun items(): List<Any?> {
        val items = ArrayList<Any?>()
        if (skipSpace() == ']') return items.also { at++ }
        do items.add(value()) while (goesOn(']'))
        return items
    }

    private fun goesOn(end: Char): Boolean {
        val c = skipSpace()
        if (c != ',' && c != end) fail("a comma or \"$end\" is missing")
        at++
        return c == ','
    }

    private fun string(): String {
        val begin = ++at
        while (peek() != '"' && peek() != '\\') plainCharacter()
        if (peek() == '"') return text.substring(begin, at++)
        val out = StringBuilder(text.substring(begin, at))
        while (peek() != '"') if (peek() == '\\') escape(out) else out.append(plainCharacter())
        at++
        return out.toString()
    }

    private fun plainCharacter(): Char {
        if (peek() < ' ') fail(if (at >= text.length) "the text ends inside of a string" else "a control character")
        return text[at++]
    }

    private fun escape(out: StringBuilder) {
        at++
        val c = peek()
        at++
        val plain = "\"\\/bfnrt".indexOf(c)
        if (plain >= 0) {
            out.append("\"\\/\b\u000c\n\r\t"[plain])
        } else {
            val digits = text.substring(minOf(at, text.length), minOf(at + 4, text.length))
            if (c != 'u' || digits.length < 4 || !digits.all { it in HEX_DIGITS }) fail("no such escape")
            out.append(digits.toInt(16).toChar())
            at += 4
        }
    }

    private fun number(): JsonNumber {
        val begin = at
        while (peek() in NUMBER_CHARACTERS) at++
        val spelling = text.substring(begin, at)
        if (!NUMBER.matches(spelling)) fail("\"$spelling\" is no number")
        return JsonNumber(spelling)
    }

    private fun <T> word(word: String, value: T): T {
        if (!text.startsWith(word, at)) fail("no value begins here")
        at += word.length
        return value
    }

    private fun expect(c: Char) {
        if (skipSpace() != c) fail("\"$c\" is missing")
        at++
    }

    private fun skipSpace(): Char {
        while (peek() == ' ' || peek() == '\n' || peek() == '\r' || peek() == '\t') at++
        return peek()
    }

    private fun peek(): Char = if (at < text.length) text[at] else END

    private fun fail(what: String): Nothing = throw JsonError("$what, at character $at")

    private companion object {
        const val END = '\u0000'
        const val HEX_DIGITS = "0123456789abcdefABCDEF"
        const val NUMBER_CHARACTERS = "+-.eE0123456789"
        val NUMBER = Regex("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?")
    }
}
