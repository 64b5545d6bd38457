package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.Sampling
import com.tinyqmoe.core.Settings
import com.tinyqmoe.core.SettingsFile
import org.junit.Test
import java.io.File
import kotlin.test.assertEquals
import kotlin.test.assertIs
import kotlin.test.assertNull

class SettingsPresenterTest {
    private val file = File(temporaryFolder(), "settings.json")
    private val presenter = SettingsPresenter(SettingsFile(file))
    private val form = SettingsForm("Be short.", "0,5", " 40 ", "0.9", "7", "100")

    @Test
    fun `settings are kept on disk`() {
        assertEquals(emptySet(), presenter.save(form))
        val expected = Settings("Be short.", Sampling(0.5, 40, 0.9, 7), 100)
        assertEquals(expected, presenter.state.value)
        assertEquals(expected, SettingsPresenter(SettingsFile(file)).state.value)
    }

    @Test
    fun `a form shows the settings as they are`() {
        presenter.save(form)
        assertEquals(form.copy(temperature = "0.5", topK = "40"), SettingsForm.of(presenter.state.value))
    }

    @Test
    fun `every field that is wrong is named, and nothing is changed`() {
        val before = presenter.state.value
        val wrong = SettingsForm("x", "-1", "1.5", "0", "many", "0")
        assertEquals(SettingsField.entries.toSet(), presenter.save(wrong))
        for (bad in listOf("", "NaN", "Infinity", "1e999")) {
            assertEquals(setOf(SettingsField.TEMPERATURE), presenter.save(form.copy(temperature = bad)), bad)
        }
        assertEquals(setOf(SettingsField.TOP_P), presenter.save(form.copy(topP = "1.1")))
        assertEquals(before, presenter.state.value)
    }

    @Test
    fun `settings that cannot be kept on disk hold, and the user is told`() {
        file.parentFile.delete()
        file.parentFile.writeText("a file where the folder was")
        val nowhere = SettingsPresenter(SettingsFile(file))
        assertEquals(emptySet(), nowhere.save(form))
        assertEquals("Be short.", nowhere.state.value.systemPrompt)
        assertIs<Notice.Problem>(nowhere.notice.value)
        nowhere.dismissNotice()
        assertNull(nowhere.notice.value)
    }

    @Test
    fun `the last model stays where the defaults come back`() {
        presenter.save(form)
        presenter.rememberModel("small")
        presenter.restoreDefaults()
        assertEquals(Settings(lastBundle = "small"), presenter.state.value)
    }
}
