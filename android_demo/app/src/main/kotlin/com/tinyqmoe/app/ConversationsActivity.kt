package com.tinyqmoe.app

import android.os.Bundle
import android.text.format.DateUtils
import android.view.View
import android.widget.ListView
import android.widget.TextView
import com.tinyqmoe.app.presenter.ConversationsState
import com.tinyqmoe.core.Conversation

/** The conversations of this device. */
class ConversationsActivity : Screen(R.layout.conversations) {
    private val rows = Rows<Conversation>(R.layout.row_conversation) { view, _, row -> showRow(view, row) }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val list = findViewById<ListView>(R.id.list)
        list.adapter = rows
        list.emptyView = findViewById(R.id.empty)
        list.setOnItemClickListener { _, _, index, _ ->
            graph.conversations.open(rows.rows[index].id)
            finish()
        }
    }

    override fun watch() {
        graph.conversations.refresh()
        show(graph.conversations.state, ::showList)
    }

    private fun showList(state: ConversationsState) {
        rows.rows = state.conversations
        showNotice(state.notice, graph.conversations::refresh)
        val unreadable = state.unreadable.joinToString()
        actionBar?.subtitle = if (unreadable.isEmpty()) null else getString(R.string.unreadable, unreadable)
    }

    private fun showRow(view: View, row: Conversation) {
        val title = title(row)
        view.findViewById<TextView>(R.id.name).text = title
        view.findViewById<TextView>(R.id.detail).text = DateUtils.getRelativeTimeSpanString(row.changed)
        val more = view.findViewById<View>(R.id.more)
        more.contentDescription = getString(R.string.more_of, title)
        more.setOnClickListener { showMenu(it, row) }
    }

    private fun showMenu(anchor: View, row: Conversation) =
        popUp(anchor, R.menu.conversation) {
            when (it) {
                R.id.menu_rename -> ask(R.string.rename, row.title) { title -> graph.conversations.rename(row, title) }
                R.id.menu_delete -> {
                    val question = getString(R.string.delete_conversation, title(row))
                    confirm(question, R.string.delete) { graph.conversations.delete(row.id) }
                }
            }
        }

    private fun title(row: Conversation): String = row.title.ifEmpty { getString(R.string.new_conversation) }
}
