package com.tinyqmoe.app

import android.app.Notification
import android.app.NotificationChannel
import android.app.NotificationManager
import android.app.PendingIntent
import android.app.Service
import android.content.Context
import android.content.Intent
import android.content.pm.ServiceInfo
import android.graphics.drawable.Icon
import android.os.Build
import android.os.IBinder
import com.tinyqmoe.app.device.MainThread
import com.tinyqmoe.app.presenter.Transfer
import com.tinyqmoe.app.presenter.Transfers
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.cancel
import kotlinx.coroutines.delay
import kotlinx.coroutines.launch

/** Keeps downloads going while the app is not seen, with a notification that shows them and can pause them. */
class TransferService : Service() {
    private val scope = CoroutineScope(SupervisorJob() + MainThread)
    private var lastStart = 0
    private val transfers: Transfers get() = (application as DemoApp).graph.list.transfers
    private val notifications: NotificationManager get() = getSystemService(NotificationManager::class.java)

    override fun onBind(intent: Intent?): IBinder? = null

    override fun onCreate() {
        super.onCreate()
        val channel = NotificationChannel(CHANNEL, getString(R.string.downloads), NotificationManager.IMPORTANCE_LOW)
        notifications.createNotificationChannel(channel)
        scope.launch { follow() }
    }

    override fun onStartCommand(intent: Intent?, flags: Int, startId: Int): Int {
        lastStart = startId
        show(notification(transfers.running.value))
        if (intent?.action == PAUSE) transfers.pauseAll()
        return START_NOT_STICKY
    }

    /** Android 15 gives a service of this type six hours a day. */
    override fun onTimeout(startId: Int, fgsType: Int) {
        transfers.pauseAll()
        stopSelf()
    }

    override fun onDestroy() {
        scope.cancel()
        super.onDestroy()
    }

    private suspend fun follow() {
        transfers.running.collect { running ->
            if (running.isEmpty()) {
                stopForeground(STOP_FOREGROUND_REMOVE)
                stopSelf(lastStart) // not where another start is on its way
            } else {
                notifications.notify(ID, notification(running))
                delay(NOTIFY_MILLIS)
            }
        }
    }

    private fun show(notification: Notification) {
        if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q) {
            startForeground(ID, notification, ServiceInfo.FOREGROUND_SERVICE_TYPE_DATA_SYNC)
        } else {
            startForeground(ID, notification)
        }
    }

    private fun notification(running: Map<String, Transfer>): Notification {
        val done = running.values.sumOf { it.bytesDone }
        val total = running.values.sumOf { it.bytesTotal }
        val open = Intent(this, ModelsActivity::class.java)
        val pause = Intent(this, TransferService::class.java).setAction(PAUSE)
        val flags = PendingIntent.FLAG_IMMUTABLE or PendingIntent.FLAG_UPDATE_CURRENT
        val icon = Icon.createWithResource(this, R.drawable.ic_pause)
        val action = Notification.Action.Builder(icon, getString(R.string.pause), PendingIntent.getService(this, 0, pause, flags))
        return Notification.Builder(this, CHANNEL)
            .setSmallIcon(R.drawable.ic_download)
            .setContentTitle(running.keys.joinToString())
            .setContentText(words(Transfer(done, total)))
            .setProgress(PERCENT, percent(Transfer(done, total)), total == 0L)
            .setContentIntent(PendingIntent.getActivity(this, 0, open, flags))
            .addAction(action.build())
            .setOnlyAlertOnce(true)
            .setOngoing(true)
            .build()
    }

    companion object {
        private const val CHANNEL = "downloads"
        private const val ID = 1
        private const val PAUSE = "com.tinyqmoe.app.PAUSE"
        private const val NOTIFY_MILLIS = 500L

        /** Starts the service; one that runs goes on. */
        fun start(context: Context) {
            context.startForegroundService(Intent(context, TransferService::class.java))
        }
    }
}
