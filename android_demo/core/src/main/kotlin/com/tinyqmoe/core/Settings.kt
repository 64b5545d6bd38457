package com.tinyqmoe.core

import java.io.File

/** What the user set. [systemPrompt] empty: the model's own, or none. [lastBundle]: the model to load at the start. */
data class Settings(
    val systemPrompt: String = "",
    val sampling: Sampling = Sampling(temperature = 0.7, topP = 0.9),
    val maxNewTokens: Int = 512,
    val lastBundle: String? = null,
)

/** Settings in a JSON file. */
class SettingsFile(private val file: File) {
    /** The settings that were kept; the defaults where the file is absent or no settings. */
    fun read(): Settings = TODO()

    /** Keeps settings: on the disk when this returns. */
    fun write(settings: Settings) {
        TODO()
    }
}
