package com.tinyqmoe.app.device

import android.app.Activity
import android.app.Application
import android.content.ComponentCallbacks2
import android.content.res.Configuration
import android.os.Build
import android.os.Bundle
import android.os.PowerManager
import com.tinyqmoe.app.presenter.SystemLevels
import com.tinyqmoe.core.PolicyEvent

/** Tells the memory policy of memory, heat, and whether the app is seen. */
class SystemEvents(private val tell: (PolicyEvent) -> Unit) : ComponentCallbacks2, Application.ActivityLifecycleCallbacks {
    private var nStarted = 0

    fun register(app: Application) {
        app.registerComponentCallbacks(this)
        app.registerActivityLifecycleCallbacks(this)
        if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q) {
            val power = app.getSystemService(PowerManager::class.java)
            power.addThermalStatusListener(app.mainExecutor) { tell(SystemLevels.thermal(it)) }
        }
    }

    override fun onTrimMemory(level: Int) {
        SystemLevels.memoryWarning(level)?.let(tell)
    }

    override fun onLowMemory() = tell(PolicyEvent.MemoryWarning.CRITICAL)

    override fun onActivityStarted(activity: Activity) {
        if (nStarted++ == 0) tell(PolicyEvent.Foreground)
    }

    /** An activity that is made anew, as when the device is turned, is started before the old one stops. */
    override fun onActivityStopped(activity: Activity) {
        if (--nStarted == 0 && !activity.isChangingConfigurations) tell(PolicyEvent.Background)
    }

    override fun onConfigurationChanged(newConfig: Configuration) = Unit

    override fun onActivityCreated(activity: Activity, savedInstanceState: Bundle?) = Unit

    override fun onActivityResumed(activity: Activity) = Unit

    override fun onActivityPaused(activity: Activity) = Unit

    override fun onActivitySaveInstanceState(activity: Activity, outState: Bundle) = Unit

    override fun onActivityDestroyed(activity: Activity) = Unit
}
