package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.BundleError
import com.tinyqmoe.core.StopReason
import java.io.IOException

/** Something to tell the user. The views have the words, in the user's language; sentences of the core stay as they are. */
sealed interface Notice {
    /** What the core says is wrong, in sentences. */
    data class Problem(val words: String) : Notice

    /** The app's native library is not there, or is of another processor. */
    data class NoLibrary(val detail: String) : Notice

    /** The model that was loaded when the app ended last. [reason] is what the system says of it, or null. */
    data class EndedWhileLoading(val model: String, val reason: String?) : Notice

    /** The memory policy stopped an answer. */
    data class Stopped(val reason: StopReason) : Notice

    /** The oldest [messages] found no room in the context. */
    data class TurnsDropped(val messages: Int) : Notice

    data object NoModel : Notice

    data object SystemPromptUnused : Notice

    data object AnswerAtLimit : Notice

    data object ContextFull : Notice

    data object BadAddress : Notice

    data object PickAgain : Notice
}

/** The notice for an error that a user can meet; anything else is a bug and is thrown again. */
fun noticeOf(error: Throwable): Notice =
    when (error) {
        is BundleError -> Notice.Problem(error.words)
        is IOException -> Notice.Problem(error.message ?: error.javaClass.simpleName)
        is LinkageError -> Notice.NoLibrary(error.message ?: error.javaClass.simpleName)
        else -> throw error
    }
