package com.tinyqmoe.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Assert.fail
import java.io.File

/** The root of the project, and what tests read of it. */
object Project {
    val root = File(System.getProperty("tinyqmoe.root") ?: error("set -Dtinyqmoe.root to the root of the project"))
    val golden = File(root, "tests/golden")

    fun json(path: String): Any? = Json.parse(File(golden, path).readText())

    /** The lines of a table, by column. */
    fun table(path: String): List<Map<String, String>> {
        val lines = File(golden, path).readLines().map { it.split("\t") }
        return lines.drop(1).map { lines[0].zip(it).toMap() }
    }
}

internal fun Any?.map(): Map<*, *> = this as Map<*, *>

internal fun Any?.list(): List<*> = this as List<*>

internal fun Any?.ints(): List<Int> = list().map { (it as JsonNumber).spelling.toInt() }

/** The error that [block] throws, which must be of [kind] and name [words]. */
internal fun refused(kind: BundleError.Kind, vararg words: String, block: () -> Unit): BundleError {
    val error =
        try {
            block()
            null
        } catch (error: BundleError) {
            error
        }
    if (error == null) fail("nothing was refused; expected $kind naming ${words.toList()}")
    assertEquals(error!!.words, kind, error.kind)
    for (word in words) assertTrue("\"$word\" is not in: ${error.words}", word in error.words)
    return error
}

/** A folder that is empty at first. */
internal fun scratch(name: String): File =
    File.createTempFile("tinyqmoe-$name", "").apply { delete() }.apply { mkdirs() }.also { folder ->
        Runtime.getRuntime().addShutdownHook(Thread { folder.deleteRecursively() })
    }
