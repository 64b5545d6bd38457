package com.tinyqmoe.app

import android.Manifest
import android.content.Intent
import android.content.pm.PackageManager
import android.os.Build
import android.os.Bundle
import android.view.View
import android.widget.EditText
import android.widget.ImageButton
import android.widget.ListView
import android.widget.ProgressBar
import android.widget.TextView
import com.tinyqmoe.app.device.PickedFolder
import com.tinyqmoe.app.presenter.ModelRow
import com.tinyqmoe.app.presenter.ModelStatus
import com.tinyqmoe.app.presenter.ModelsState
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext

/** The models of this device: download, import, load, check, delete. */
class ModelsActivity : Screen(R.layout.models) {
    private val rows = Rows<ModelRow>(R.layout.row_model) { view, _, row -> showRow(view, row) }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val list = findViewById<ListView>(R.id.list)
        list.adapter = rows
        list.emptyView = findViewById(R.id.empty)
        list.setOnItemClickListener { _, _, index, _ -> load(rows.rows[index]) }
        val address = findViewById<EditText>(R.id.address)
        findViewById<View>(R.id.download).setOnClickListener { download(address.text.toString()) }
        address.setOnEditorActionListener { _, _, _ ->
            download(address.text.toString())
            true
        }
        findViewById<View>(R.id.pick).setOnClickListener {
            startActivityForResult(Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), PICK)
        }
    }

    override fun watch() {
        graph.list.refresh()
        show(graph.list.state, ::showList)
    }

    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        super.onActivityResult(requestCode, resultCode, data)
        val tree = data?.data
        if (requestCode != PICK || resultCode != RESULT_OK || tree == null) return
        val resolver = applicationContext.contentResolver
        graph.list.importPicked { withContext(Dispatchers.IO) { PickedFolder(resolver, tree).source() } }
    }

    private fun download(address: String) {
        askForNotifications()
        graph.list.download(address)
    }

    /** The download goes on without them, but its progress is then only seen here. */
    private fun askForNotifications() {
        if (Build.VERSION.SDK_INT < Build.VERSION_CODES.TIRAMISU) return
        val permission = Manifest.permission.POST_NOTIFICATIONS
        if (checkSelfPermission(permission) != PackageManager.PERMISSION_GRANTED) requestPermissions(arrayOf(permission), 0)
    }

    private fun showList(state: ModelsState) {
        rows.rows = state.rows
        showNotice(state.notice, graph.list::dismissNotice)
    }

    private fun showRow(view: View, row: ModelRow) {
        view.findViewById<TextView>(R.id.name).text = row.name
        view.findViewById<TextView>(R.id.detail).text = words(row)
        showProgress(view.findViewById(R.id.progress), row.status)
        showTransfer(view.findViewById(R.id.transfer), row)
        val more = view.findViewById<View>(R.id.more)
        more.contentDescription = getString(R.string.more_of, row.name)
        more.setOnClickListener { showMenu(it, row) }
    }

    private fun showProgress(bar: ProgressBar, status: ModelStatus) {
        val running = (status as? ModelStatus.Running)?.transfer
        bar.visibility = if (running == null) View.GONE else View.VISIBLE
        if (running != null) bar.progress = percent(running)
    }

    private fun showTransfer(button: ImageButton, row: ModelRow) {
        val status = row.status
        val isRunning = status is ModelStatus.Running
        val canResume = status is ModelStatus.Paused && status.canResume
        button.visibility = if (isRunning || canResume) View.VISIBLE else View.GONE
        button.setImageResource(if (isRunning) R.drawable.ic_pause else R.drawable.ic_resume)
        button.contentDescription = getString(if (isRunning) R.string.pause_of else R.string.resume_of, row.name)
        button.setOnClickListener { if (isRunning) graph.list.pause(row.id) else graph.list.resume(row.id) }
    }

    private fun showMenu(anchor: View, row: ModelRow) {
        val hidden = if (row.status is ModelStatus.Stored) emptySet() else setOf(R.id.menu_load_model, R.id.menu_check)
        popUp(anchor, R.menu.model, hidden) {
            when (it) {
                R.id.menu_load_model -> load(row)
                R.id.menu_check -> startActivity(CheckActivity.intent(this, row.id))
                R.id.menu_delete -> {
                    val question = getString(R.string.delete_model, row.name)
                    confirm(question, R.string.delete) { graph.list.delete(row.id) }
                }
            }
        }
    }

    private fun load(row: ModelRow) {
        if (row.status !is ModelStatus.Stored) return
        graph.holder.open(row.id)
        finish()
    }

    private companion object {
        const val PICK = 1
    }
}
