package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.PolicyEvent
import com.tinyqmoe.core.PolicyEvent.MemoryWarning
import com.tinyqmoe.core.PolicyEvent.Thermal

/** Android's numbers for memory and heat, as events of the memory policy. */
object SystemLevels {
    /**
     * A level of ComponentCallbacks2.onTrimMemory. TRIM_MEMORY_UI_HIDDEN (20) is null: that the app is not seen is told by
     * its activities. From Android 14 on only 20 and 40 come.
     */
    fun memoryWarning(level: Int): PolicyEvent? =
        when (level) {
            5 -> MemoryWarning.MODERATE // RUNNING_MODERATE
            10, 40 -> MemoryWarning.LOW // RUNNING_LOW, BACKGROUND
            15, 60, 80 -> MemoryWarning.CRITICAL // RUNNING_CRITICAL, MODERATE, COMPLETE
            else -> null
        }

    /** A status of PowerManager's thermal listener, from THERMAL_STATUS_NONE (0) to SHUTDOWN (6). */
    fun thermal(status: Int): PolicyEvent =
        when (status) {
            0 -> Thermal.NOMINAL
            1, 2 -> Thermal.FAIR // LIGHT, MODERATE
            3 -> Thermal.SERIOUS // SEVERE
            else -> Thermal.CRITICAL
        }
}
