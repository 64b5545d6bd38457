package com.tinyqmoe.app

import android.os.Bundle
import android.view.View
import android.widget.EditText
import com.tinyqmoe.app.presenter.SettingsField
import com.tinyqmoe.app.presenter.SettingsForm

/** System prompt and sampling. It does not need the model, so it can be used while one loads. */
class SettingsActivity : Screen(R.layout.settings) {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        if (savedInstanceState == null) fill(SettingsForm.of(graph.settings.state.value))
        findViewById<View>(R.id.save).setOnClickListener { save() }
        findViewById<View>(R.id.defaults).setOnClickListener {
            graph.settings.restoreDefaults()
            fill(SettingsForm.of(graph.settings.state.value))
        }
    }

    override fun watch() = show(graph.settings.notice) { showNotice(it, graph.settings::dismissNotice) }

    private fun fill(form: SettingsForm) {
        field(R.id.system_prompt).setText(form.systemPrompt)
        field(R.id.temperature).setText(form.temperature)
        field(R.id.top_k).setText(form.topK)
        field(R.id.top_p).setText(form.topP)
        field(R.id.seed).setText(form.seed)
        field(R.id.max_new_tokens).setText(form.maxNewTokens)
    }

    private fun save() {
        val form =
            SettingsForm(
                systemPrompt = text(R.id.system_prompt),
                temperature = text(R.id.temperature),
                topK = text(R.id.top_k),
                topP = text(R.id.top_p),
                seed = text(R.id.seed),
                maxNewTokens = text(R.id.max_new_tokens),
            )
        val wrong = graph.settings.save(form)
        if (wrong.isEmpty() && graph.settings.notice.value == null) finish()
        SettingsField.entries.forEach { field(idOf(it)).error = if (it in wrong) words(it) else null }
    }

    private fun idOf(field: SettingsField): Int =
        when (field) {
            SettingsField.TEMPERATURE -> R.id.temperature
            SettingsField.TOP_K -> R.id.top_k
            SettingsField.TOP_P -> R.id.top_p
            SettingsField.SEED -> R.id.seed
            SettingsField.MAX_NEW_TOKENS -> R.id.max_new_tokens
        }

    private fun field(id: Int): EditText = findViewById(id)

    private fun text(id: Int): String = field(id).text.toString()
}
