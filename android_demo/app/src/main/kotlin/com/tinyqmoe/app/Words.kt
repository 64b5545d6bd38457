package com.tinyqmoe.app

import android.content.Context
import android.text.format.Formatter
import com.tinyqmoe.app.presenter.ChatState
import com.tinyqmoe.app.presenter.CheckState
import com.tinyqmoe.app.presenter.ModelRow
import com.tinyqmoe.app.presenter.ModelState
import com.tinyqmoe.app.presenter.ModelStatus
import com.tinyqmoe.app.presenter.Notice
import com.tinyqmoe.app.presenter.SettingsField
import com.tinyqmoe.app.presenter.Transfer
import com.tinyqmoe.core.Role
import com.tinyqmoe.core.StopReason

/** What presenters tell, in the user's language. */
fun Context.words(notice: Notice): String =
    when (notice) {
        is Notice.Problem -> notice.words
        is Notice.NoLibrary -> getString(R.string.notice_no_library, notice.detail)
        is Notice.EndedWhileLoading -> {
            val reason = notice.reason ?: getString(R.string.exit_unknown)
            getString(R.string.notice_ended_while_loading, notice.model, reason)
        }
        is Notice.Stopped -> words(notice.reason)
        is Notice.TurnsDropped -> resources.getQuantityString(R.plurals.notice_turns_dropped, notice.messages, notice.messages)
        Notice.NoModel -> getString(R.string.notice_no_model)
        Notice.SystemPromptUnused -> getString(R.string.notice_system_prompt_unused)
        Notice.AnswerAtLimit -> getString(R.string.notice_answer_at_limit)
        Notice.ContextFull -> getString(R.string.notice_context_full)
        Notice.BadAddress -> getString(R.string.notice_bad_address)
        Notice.PickAgain -> getString(R.string.notice_pick_again)
    }

fun Context.words(reason: StopReason): String =
    getString(
        when (reason) {
            StopReason.MEMORY -> R.string.stopped_memory
            StopReason.HEAT -> R.string.stopped_heat
            StopReason.BACKGROUND -> R.string.stopped_background
        },
    )

fun Context.words(state: ModelState): String =
    when (state) {
        ModelState.None -> getString(R.string.model_none)
        is ModelState.Loading -> getString(R.string.model_loading, state.id)
        is ModelState.Ready -> state.model.chatProblem?.let { getString(R.string.model_no_chat, state.id, it) } ?: state.id
        is ModelState.Unloaded -> getString(R.string.model_unloaded, state.id)
        is ModelState.Refused -> getString(R.string.model_refused, state.id)
        is ModelState.Failed -> getString(R.string.model_failed, state.id)
    }

fun Context.words(row: ModelRow): String =
    when (val status = row.status) {
        is ModelStatus.Stored -> "${size(row.bytes)}\n${status.forecast.words}"
        is ModelStatus.Damaged -> status.words
        is ModelStatus.Running -> words(status.transfer)
        is ModelStatus.Paused -> getString(R.string.paused, words(status.transfer))
    }

fun Context.words(transfer: Transfer): String {
    val total = transfer.bytesTotal
    return if (total == 0L) size(transfer.bytesDone) else getString(R.string.bytes_of, size(transfer.bytesDone), size(total))
}

fun Context.words(state: CheckState): String =
    when (state) {
        CheckState.Idle -> getString(R.string.check_about)
        is CheckState.Running -> getString(if (state.total == 0) R.string.check_reading else R.string.check_running)
        is CheckState.Done -> state.report.text()
        is CheckState.Failed -> words(state.notice)
    }

fun Context.words(field: SettingsField): String =
    getString(
        when (field) {
            SettingsField.TEMPERATURE -> R.string.wrong_temperature
            SettingsField.TOP_K -> R.string.wrong_top_k
            SettingsField.TOP_P -> R.string.wrong_top_p
            SettingsField.SEED -> R.string.wrong_seed
            SettingsField.MAX_NEW_TOKENS -> R.string.wrong_max_new_tokens
        },
    )

fun Context.name(role: Role): String =
    getString(
        when (role) {
            Role.SYSTEM -> R.string.role_system
            Role.USER -> R.string.role_user
            Role.ASSISTANT -> R.string.role_assistant
        },
    )

/** Speed and memory of an answer: tokens a second, time to the first token, and memory of [usedBytes] and [freeBytes] left. */
fun Context.figures(state: ChatState, usedBytes: Long?, freeBytes: Long): String {
    val parts = mutableListOf<String>()
    state.reading?.let { parts += getString(R.string.figure_reading, it.done, it.total) }
    state.stats?.firstTokenMillis?.let { parts += getString(R.string.figure_first_token, it / 1000.0) }
    state.stats?.tokensPerSecond?.let { parts += getString(R.string.figure_speed, it) }
    usedBytes?.let { parts += getString(R.string.figure_memory, size(it), size(it + freeBytes)) }
    return parts.joinToString(" · ")
}

const val PERCENT = 100

fun percent(transfer: Transfer): Int =
    if (transfer.bytesTotal == 0L) 0 else (transfer.bytesDone * PERCENT / transfer.bytesTotal).toInt()

private fun Context.size(bytes: Long): String = Formatter.formatShortFileSize(this, bytes)
