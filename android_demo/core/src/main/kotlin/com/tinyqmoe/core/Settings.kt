package com.tinyqmoe.core

import java.io.File
import java.io.IOException

/**
 * What the user set. [systemPrompt] empty: the model's own, or none. [lastBundle]: the id of the model to load
 * at the start.
 */
data class Settings(
    val systemPrompt: String = "",
    val sampling: Sampling = Sampling(temperature = 0.7, topP = 0.9),
    val maxNewTokens: Int = 512,
    val lastBundle: String? = null,
)

/** Settings in a JSON file. */
class SettingsFile(private val file: File) {
    /**
     * The settings that were kept, or the defaults where there are none. A file that is damaged is kept beside
     * them.
     */
    fun read(): Settings {
        if (!file.isFile) return Settings()
        return parse() ?: Settings().also { file.renameTo(File(file.path + ".damaged")) }
    }

    /** Keeps settings: on the disk when this returns. Throws IOException. */
    fun write(settings: Settings) {
        val sampling = settings.sampling
        val content =
            mapOf(
                "system_prompt" to settings.systemPrompt,
                "temperature" to sampling.temperature,
                "top_k" to sampling.topK,
                "top_p" to sampling.topP,
                "seed" to sampling.seed,
                "max_new_tokens" to settings.maxNewTokens,
                "last_bundle" to settings.lastBundle,
            )
        AtomicFiles.write(file, Json.write(content))
    }

    private fun parse(): Settings? {
        val problems = ArrayList<String>()
        return try {
            val fields = Fields("", Json.parse(file.readText()), problems)
            val topK = fields.count("top_k")
            val sampling = Sampling(fields.double("temperature"), topK, fields.double("top_p"), fields.long("seed"))
            val limit = fields.count("max_new_tokens")
            Settings(fields.text("system_prompt"), sampling, limit, fields.textOrNull("last_bundle"))
                .takeIf { problems.isEmpty() && limit > 0 }
        } catch (error: JsonError) {
            null
        } catch (error: IOException) {
            null
        } catch (error: IllegalArgumentException) {
            null
        }
    }
}
