package com.tinyqmoe.app

import android.app.AlertDialog
import android.content.Intent
import android.os.Bundle
import android.view.Gravity
import android.view.Menu
import android.view.MenuItem
import android.view.View
import android.widget.EditText
import android.widget.FrameLayout
import android.widget.ImageButton
import android.widget.ListView
import android.widget.TextView
import com.tinyqmoe.app.presenter.ChatState
import com.tinyqmoe.app.presenter.ModelState
import com.tinyqmoe.app.presenter.Notice
import com.tinyqmoe.core.Message
import com.tinyqmoe.core.Role
import kotlinx.coroutines.delay
import kotlinx.coroutines.launch

/** The chat: where the app begins. */
class ChatActivity : Screen(R.layout.chat) {
    private lateinit var markdown: MarkdownText
    private var refusal: AlertDialog? = null
    private val messages = Rows<Message>(R.layout.row_message) { view, _, message -> showMessage(view, message) }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        markdown = MarkdownText(this)
        actionBar?.setDisplayHomeAsUpEnabled(false)
        val list = findViewById<ListView>(R.id.messages)
        list.adapter = messages
        list.setOnItemClickListener { _, view, index, _ -> showMessageMenu(view, index) }
        findViewById<View>(R.id.send).setOnClickListener { sendOrStop() }
    }

    override fun watch() {
        show(graph.chat.state, ::showChat)
        show(graph.holder.state, ::showModel)
        seen.launch { showMemory() }
    }

    override fun onStop() {
        refusal?.dismiss() // it is asked again when the screen comes back
        super.onStop()
    }

    override fun onCreateOptionsMenu(menu: Menu): Boolean {
        menuInflater.inflate(R.menu.chat, menu)
        return true
    }

    override fun onOptionsItemSelected(item: MenuItem): Boolean {
        when (item.itemId) {
            R.id.menu_new_conversation -> graph.chat.new()
            R.id.menu_conversations -> go(ConversationsActivity::class.java)
            R.id.menu_models -> go(ModelsActivity::class.java)
            R.id.menu_settings -> go(SettingsActivity::class.java)
            R.id.menu_regenerate -> graph.chat.regenerate()
            R.id.menu_share_conversation -> share(graph.chat.transcript(::name))
            else -> return super.onOptionsItemSelected(item)
        }
        return true
    }

    private fun go(screen: Class<*>) = startActivity(Intent(this, screen))

    private fun sendOrStop() {
        val question = findViewById<EditText>(R.id.question)
        if (graph.chat.state.value.isAnswering) {
            graph.chat.stop()
        } else if (graph.chat.send(question.text.toString())) {
            question.text.clear()
        }
    }

    private fun showChat(state: ChatState) {
        actionBar?.title = state.conversation?.title?.ifEmpty { null } ?: getString(R.string.app_name)
        messages.rows = state.messages
        val send = findViewById<ImageButton>(R.id.send)
        send.setImageResource(if (state.isAnswering) R.drawable.ic_stop else R.drawable.ic_send)
        send.contentDescription = getString(if (state.isAnswering) R.string.stop else R.string.send)
        keepAwake(state.isAnswering)
        showNotices()
        showFigures()
    }

    private fun showModel(state: ModelState) {
        findViewById<TextView>(R.id.status).text = words(state)
        showNotices()
        if (state is ModelState.Refused) {
            refusal = confirm(state.words, R.string.load_anyway, no = graph.holder::dismiss) {
                graph.holder.open(state.id, evenIfTooLarge = true)
            }
        }
    }

    private fun showNotices() {
        val failed = graph.holder.state.value as? ModelState.Failed
        val notice = graph.chat.state.value.notice ?: failed?.notice
        showNotice(notice) {
            graph.chat.notice(null)
            graph.holder.dismiss()
            showNotices()
            if (notice == Notice.NoModel) go(ModelsActivity::class.java)
        }
    }

    private suspend fun showMemory() {
        while (true) {
            showFigures()
            delay(MEMORY_MILLIS)
        }
    }

    private fun showFigures() {
        val memory = graph.memory
        findViewById<TextView>(R.id.figures).text = figures(graph.chat.state.value, memory.usedBytes, memory.freeBytes)
    }

    private fun showMessage(view: View, message: Message) {
        val isUser = message.role == Role.USER
        val text = view.findViewById<TextView>(R.id.text)
        text.text = if (isUser) message.content else markdown.of(message.content)
        text.setBackgroundResource(if (isUser) R.drawable.bubble_user else 0)
        val place = text.layoutParams as FrameLayout.LayoutParams
        place.gravity = if (isUser) Gravity.END else Gravity.START
        text.layoutParams = place
        view.contentDescription = getString(R.string.said, name(message.role), message.content)
    }

    private fun showMessageMenu(view: View, index: Int) {
        val message = messages.rows[index]
        val isLast = index == messages.rows.lastIndex
        val hidden = buildSet {
            if (message.role != Role.USER) add(R.id.menu_edit_and_retry)
            if (!isLast) add(R.id.menu_regenerate)
        }
        popUp(view, R.menu.message, hidden) {
            when (it) {
                R.id.menu_copy -> copy(message.content)
                R.id.menu_share_text -> share(message.content)
                R.id.menu_edit_and_retry -> ask(R.string.edit_and_retry, message.content) { text -> graph.chat.edit(index, text) }
                R.id.menu_regenerate -> graph.chat.regenerate()
            }
        }
    }

    private companion object {
        const val MEMORY_MILLIS = 2000L
    }
}
