package com.tinyqmoe.app.device

import android.app.ActivityManager
import android.content.Context
import com.tinyqmoe.app.presenter.ProcessMemory
import java.io.File

/** Memory of this device and this app, in bytes. */
class DeviceMemory(context: Context) {
    private val manager = context.getSystemService(ActivityManager::class.java)

    /** What can be taken before the system counts memory as low and ends apps. */
    val freeBytes: Long
        get() {
            val info = ActivityManager.MemoryInfo()
            manager.getMemoryInfo(info)
            return (info.availMem - info.threshold).coerceAtLeast(0)
        }

    /** What the app holds and cannot drop; null where the system does not say. */
    val usedBytes: Long? get() = ProcessMemory.dirtyBytes(File("/proc/self/status").readText())
}
