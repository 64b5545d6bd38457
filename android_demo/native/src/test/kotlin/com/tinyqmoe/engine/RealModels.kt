package com.tinyqmoe.engine

import com.tinyqmoe.core.Bundle
import com.tinyqmoe.core.Json
import com.tinyqmoe.core.JsonNumber
import java.io.File

/** A bundle with what the command line says of it: check.sh puts it beside the bundle. */
internal class RealModel(private val folder: File) {
    val bundle: Bundle get() = Bundle.open(File(folder, "bundle"))
    val question: String get() = File(folder, "question.txt").readText()
    val run: Map<*, *> get() = json("run.json")
    /** The checks of parity that a phone makes too: all but those of levels and scales. */
    val parity: List<Map<*, *>>
        get() {
            val package_ = (json("parity.json")["packages"] as List<*>).single() as Map<*, *>
            return (package_["checks"] as List<*>).map { it as Map<*, *> }.filter { it["verdict"] !in listOf("levels", "scales") }
        }

    private fun json(name: String) = Json.parse(File(folder, name).readText()) as Map<*, *>

    override fun toString(): String = folder.name

    companion object {
        private val folder = File(System.getProperty("tinyqmoe.real") ?: error("set -Dtinyqmoe.real to the folder of check.sh"))
        val demo = RealModel(File(folder, "demo"))

        /** The demo model, and SmolLM2 where check.sh was given a bundle. */
        val all: List<RealModel> = listOf(File(folder, "demo"), File(folder, "smollm2")).filter { it.isDirectory }.map(::RealModel)
    }
}

internal fun ints(value: Any?): List<Int> = (value as List<*>).map { (it as JsonNumber).spelling.toInt() }
