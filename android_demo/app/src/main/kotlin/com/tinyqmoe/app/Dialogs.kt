package com.tinyqmoe.app

import android.app.Activity
import android.app.AlertDialog
import android.content.ClipData
import android.content.ClipboardManager
import android.content.Intent
import android.text.InputType
import android.view.View
import android.widget.EditText
import android.widget.PopupMenu

/** Asks whether to do something that cannot be undone, or that the text advises against. */
fun Activity.confirm(text: String, button: Int, no: () -> Unit = {}, yes: () -> Unit): AlertDialog =
    AlertDialog.Builder(this)
        .setMessage(text)
        .setPositiveButton(button) { _, _ -> yes() }
        .setNegativeButton(R.string.cancel) { _, _ -> no() }
        .setOnCancelListener { no() }
        .show()

/** Asks for a text that begins as [text]. */
fun Activity.ask(title: Int, text: String, done: (String) -> Unit) {
    val field = EditText(this)
    field.inputType = InputType.TYPE_CLASS_TEXT or InputType.TYPE_TEXT_FLAG_MULTI_LINE or InputType.TYPE_TEXT_FLAG_CAP_SENTENCES
    field.setText(text)
    AlertDialog.Builder(this)
        .setTitle(title)
        .setView(field)
        .setPositiveButton(R.string.ok) { _, _ -> done(field.text.toString()) }
        .setNegativeButton(R.string.cancel, null)
        .show()
}

/** A menu at a view. [chosen] gets the id of an item; [hidden] are items that do not fit here. */
fun popUp(anchor: View, menu: Int, hidden: Set<Int> = emptySet(), chosen: (Int) -> Unit) {
    val popup = PopupMenu(anchor.context, anchor)
    popup.inflate(menu)
    hidden.forEach { popup.menu.findItem(it).isVisible = false }
    popup.setOnMenuItemClickListener {
        chosen(it.itemId)
        true
    }
    popup.show()
}

fun Activity.share(text: String) {
    val send = Intent(Intent.ACTION_SEND).setType("text/plain").putExtra(Intent.EXTRA_TEXT, text)
    startActivity(Intent.createChooser(send, null))
}

fun Activity.copy(text: String) =
    getSystemService(ClipboardManager::class.java).setPrimaryClip(ClipData.newPlainText(getString(R.string.app_name), text))
