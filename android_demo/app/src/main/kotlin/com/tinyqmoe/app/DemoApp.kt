package com.tinyqmoe.app

import android.app.Application
import com.tinyqmoe.app.device.SystemEvents
import com.tinyqmoe.app.device.lastExitReason
import kotlinx.coroutines.flow.distinctUntilChanged
import kotlinx.coroutines.flow.filter
import kotlinx.coroutines.flow.map
import kotlinx.coroutines.launch

class DemoApp : Application() {
    lateinit var graph: AppGraph
        private set

    override fun onCreate() {
        super.onCreate()
        graph = AppGraph(this)
        SystemEvents(graph.policy::on).register(this)
        graph.start.begin { lastExitReason(this) }?.let(graph.chat::notice)
        graph.scope.launch {
            val areRunning = graph.list.transfers.running.map { it.isNotEmpty() }.distinctUntilChanged()
            areRunning.filter { it }.collect { TransferService.start(this@DemoApp) }
        }
    }
}
