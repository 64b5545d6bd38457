package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.LoadGuard
import com.tinyqmoe.core.Message
import com.tinyqmoe.core.Reply
import com.tinyqmoe.core.ReplyLimits
import com.tinyqmoe.core.Sampling
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.onCompletion
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.onStart

/**
 * A model whose load is only counted as survived once it computed a token: systems end apps for memory at the first
 * prompt as often as at the load itself, since weights are mapped and come when they are used.
 */
class GuardedModel(private val model: LoadedModel, private val id: String, private val guard: LoadGuard) :
    LoadedModel by model {
    private var isProven = false

    override fun reply(messages: List<Message>, sampling: Sampling, limits: ReplyLimits): Flow<Reply> {
        val replies = model.reply(messages, sampling, limits)
        if (isProven) return replies
        return replies
            .onStart { guard.begin(id) }
            .onEach { if (it is Reply.Text) prove() }
            .onCompletion { if (!isProven) guard.finished() }
    }

    private fun prove() {
        if (isProven) return
        isProven = true
        guard.finished()
    }
}
