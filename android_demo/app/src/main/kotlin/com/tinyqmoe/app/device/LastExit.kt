package com.tinyqmoe.app.device

import android.app.ActivityManager
import android.app.ApplicationExitInfo
import android.content.Context
import android.os.Build
import com.tinyqmoe.app.R

/** Why the last run of the app ended, in words; null where the system does not say (before Android 11). */
fun lastExitReason(context: Context): String? {
    if (Build.VERSION.SDK_INT < Build.VERSION_CODES.R) return null
    val manager = context.getSystemService(ActivityManager::class.java)
    val last = manager.getHistoricalProcessExitReasons(context.packageName, 0, 1).firstOrNull() ?: return null
    val description = last.description.orEmpty()
    // Android 17's limiter of an app's memory is told by the description only.
    val wasMemory = last.reason == ApplicationExitInfo.REASON_LOW_MEMORY || "MemoryLimiter" in description
    return when {
        wasMemory -> context.getString(R.string.exit_memory)
        last.reason == ApplicationExitInfo.REASON_CRASH_NATIVE -> context.getString(R.string.exit_native_crash)
        else -> description.ifEmpty { null }
    }
}
