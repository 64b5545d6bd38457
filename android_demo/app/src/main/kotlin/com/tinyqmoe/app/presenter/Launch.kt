package com.tinyqmoe.app.presenter

import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.DelicateCoroutinesApi
import kotlinx.coroutines.ExperimentalCoroutinesApi
import kotlinx.coroutines.Job
import kotlinx.coroutines.launch

/** Begins work whose `finally` has to run even if it is cancelled before its first line: by a tap right after the first. */
@OptIn(DelicateCoroutinesApi::class, ExperimentalCoroutinesApi::class)
internal fun CoroutineScope.launchSurely(work: suspend CoroutineScope.() -> Unit): Job =
    launch(start = CoroutineStart.ATOMIC, block = work)
