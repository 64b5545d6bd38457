package com.tinyqmoe.core

/**
 * The members of a JSON object, read strictly: what is missing or of another type goes into [problems] under its path,
 * and a stand-in is returned, so that all problems are found at once.
 */
internal class Fields(private val where: String, value: Any?, val problems: MutableList<String>) {
    private val members: Map<*, *> =
        value as? Map<*, *> ?: emptyMap<String, Any?>().also {
            problems += "${where.ifEmpty { "the text" }} must be an object"
        }

    /** Names of all members. */
    val names: Set<String> get() = members.keys.mapTo(LinkedHashSet()) { it as String }

    fun text(name: String): String = read(name, "a text", "") { it as? String }

    fun textOrNull(name: String): String? = if (isNull(name)) null else text(name)

    fun long(name: String): Long = read(name, "a whole number", 0L) { (it as? JsonNumber)?.toLongOrNull() }

    /** A whole number of 32 bits that is not negative. */
    fun count(name: String): Int =
        read(name, "a whole number", 0) { (it as? JsonNumber)?.spelling?.toIntOrNull()?.takeIf { n -> n >= 0 } }

    fun countOrNull(name: String): Int? = if (isNull(name)) null else count(name)

    fun flag(name: String): Boolean = read(name, "true or false", false) { it as? Boolean }

    fun double(name: String): Double = read(name, "a number", 0.0) { (it as? JsonNumber)?.toDouble() }

    fun texts(name: String): List<String> = items(name, "a list of texts") { it as? String }

    fun counts(name: String): List<Int> =
        items(name, "a list of whole numbers") { (it as? JsonNumber)?.spelling?.toIntOrNull() }

    /** An object inside of this one. */
    fun fields(name: String): Fields {
        val inner = read(name, "an object", emptyMap<String, Any?>()) { it as? Map<*, *> }
        return Fields(path(name), inner, problems)
    }

    /** The objects of a list. */
    fun list(name: String): List<Fields> =
        read(name, "a list", emptyList<Any?>()) { it as? List<*> }
            .mapIndexed { i, item -> Fields("${path(name)}[$i]", item, problems) }

    /** The objects inside of an object, by name. */
    fun byName(name: String): Map<String, Fields> =
        fields(name).let { inner -> inner.names.associateWith { inner.fields(it) } }

    private fun isNull(name: String) = name in members && members[name] == null

    private fun <T : Any> items(name: String, kind: String, read: (Any?) -> T?): List<T> =
        read(name, kind, emptyList()) { value -> (value as? List<*>)?.map { read(it) ?: return@read null } }

    private fun <T : Any> read(name: String, kind: String, standIn: T, read: (Any?) -> T?): T {
        if (name !in members) problems += "${path(name)} is missing"
        else read(members[name])?.let { return it } ?: run { problems += "${path(name)} must be $kind" }
        return standIn
    }

    private fun path(name: String) = if (where.isEmpty()) name else "$where.$name"
}
