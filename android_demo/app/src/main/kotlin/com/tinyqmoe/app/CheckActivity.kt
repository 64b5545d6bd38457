package com.tinyqmoe.app

import android.content.Context
import android.content.Intent
import android.os.Bundle
import android.view.View
import android.widget.Button
import android.widget.ProgressBar
import android.widget.TextView
import com.tinyqmoe.app.presenter.CheckState

/** "Check this model": whether it computes here what it computed where it was made. */
class CheckActivity : Screen(R.layout.check) {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val id = checkNotNull(intent.getStringExtra(MODEL))
        actionBar?.subtitle = id
        graph.check.select(id)
        findViewById<View>(R.id.start).setOnClickListener {
            if (graph.check.state.value is CheckState.Running) graph.check.cancel() else graph.check.start(id)
        }
        findViewById<View>(R.id.share).setOnClickListener { shareReport() }
    }

    override fun watch() = show(graph.check.state, ::showCheck)

    private fun showCheck(state: CheckState) {
        val running = state as? CheckState.Running
        val bar = findViewById<ProgressBar>(R.id.progress)
        bar.visibility = if (running == null) View.INVISIBLE else View.VISIBLE
        bar.isIndeterminate = running?.total == 0
        bar.max = running?.total ?: 0
        bar.progress = running?.done ?: 0
        findViewById<TextView>(R.id.report).text = words(state)
        findViewById<Button>(R.id.start).setText(if (running == null) R.string.check_start else R.string.cancel)
        findViewById<View>(R.id.share).isEnabled = state is CheckState.Done
        keepAwake(running != null)
    }

    private fun shareReport() {
        val report = (graph.check.state.value as? CheckState.Done)?.report ?: return
        share("${report.text()}\n\n${report.json()}")
    }

    companion object {
        private const val MODEL = "model"

        fun intent(context: Context, id: String): Intent = Intent(context, CheckActivity::class.java).putExtra(MODEL, id)
    }
}
