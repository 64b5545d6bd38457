package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.Sampling
import com.tinyqmoe.core.Settings
import com.tinyqmoe.core.SettingsFile
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import java.io.IOException

/** The settings as they are typed. Numbers may have a decimal point or comma. */
data class SettingsForm(
    val systemPrompt: String,
    val temperature: String,
    val topK: String,
    val topP: String,
    val seed: String,
    val maxNewTokens: String,
) {
    companion object {
        fun of(settings: Settings): SettingsForm =
            SettingsForm(
                settings.systemPrompt,
                settings.sampling.temperature.toString(),
                settings.sampling.topK.toString(),
                settings.sampling.topP.toString(),
                settings.sampling.seed.toString(),
                settings.maxNewTokens.toString(),
            )
    }
}

/** A field whose text is no value that it may have. */
enum class SettingsField { TEMPERATURE, TOP_K, TOP_P, SEED, MAX_NEW_TOKENS }

/** What the user set, kept on disk. It does not need the model, so it can be changed while one loads or answers. */
class SettingsPresenter(private val file: SettingsFile) {
    private val current = MutableStateFlow(file.read())
    private val problem = MutableStateFlow<Notice?>(null)
    val state: StateFlow<Settings> = current.asStateFlow()

    /** Why the settings could not be kept on disk; they hold until the app ends. */
    val notice: StateFlow<Notice?> = problem.asStateFlow()

    /** Keeps a form. Returns the fields that are wrong; then nothing was changed. */
    fun save(form: SettingsForm): Set<SettingsField> {
        val temperature = form.temperature.decimal()?.takeIf { it >= 0 }
        val topK = form.topK.trim().toIntOrNull()?.takeIf { it >= 0 }
        val topP = form.topP.decimal()?.takeIf { it > 0 && it <= 1 }
        val seed = form.seed.trim().toLongOrNull()
        val most = form.maxNewTokens.trim().toIntOrNull()?.takeIf { it > 0 }
        val values =
            mapOf(
                SettingsField.TEMPERATURE to temperature,
                SettingsField.TOP_K to topK,
                SettingsField.TOP_P to topP,
                SettingsField.SEED to seed,
                SettingsField.MAX_NEW_TOKENS to most,
            )
        if (temperature != null && topK != null && topP != null && seed != null && most != null) {
            val sampling = Sampling(temperature, topK, topP, seed)
            keep(current.value.copy(systemPrompt = form.systemPrompt, sampling = sampling, maxNewTokens = most))
        }
        return values.filterValues { it == null }.keys
    }

    /** The settings that the app begins with; the last model stays. */
    fun restoreDefaults() = keep(Settings(lastBundle = current.value.lastBundle))

    /** Remembers the model to load at the next start; null: none. */
    fun rememberModel(id: String?) {
        if (current.value.lastBundle != id) keep(current.value.copy(lastBundle = id))
    }

    fun dismissNotice() {
        problem.value = null
    }

    private fun keep(settings: Settings) {
        current.value = settings
        problem.value =
            try {
                file.write(settings)
                null
            } catch (error: IOException) {
                noticeOf(error)
            }
    }
}

private fun String.decimal(): Double? = trim().replace(',', '.').toDoubleOrNull()?.takeIf { it.isFinite() }
