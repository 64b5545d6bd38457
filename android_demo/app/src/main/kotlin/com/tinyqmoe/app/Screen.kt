package com.tinyqmoe.app

import android.app.Activity
import android.os.Build
import android.os.Bundle
import android.view.MenuItem
import android.view.View
import android.view.Window
import android.view.WindowInsets
import android.view.WindowManager
import android.widget.TextView
import com.tinyqmoe.app.device.MainThread
import com.tinyqmoe.app.presenter.Notice
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.cancel
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.launch

/** A screen of the app: it shows the state of its presenters while it is seen. [layout] has a root and a toolbar. */
abstract class Screen(private val layout: Int) : Activity() {
    protected val graph: AppGraph get() = (application as DemoApp).graph

    /** Ends when the screen is not seen any more. */
    protected lateinit var seen: CoroutineScope
        private set

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(layout)
        setActionBar(findViewById(R.id.toolbar))
        actionBar?.setDisplayHomeAsUpEnabled(!isTaskRoot)
        drawBehindSystemBars(window, findViewById(R.id.root))
    }

    override fun onStart() {
        super.onStart()
        seen = CoroutineScope(SupervisorJob() + MainThread)
        watch()
    }

    override fun onStop() {
        seen.cancel()
        super.onStop()
    }

    override fun onOptionsItemSelected(item: MenuItem): Boolean {
        if (item.itemId != android.R.id.home) return super.onOptionsItemSelected(item)
        finish()
        return true
    }

    /** Begins to show what the screen shows, by [show]. */
    protected abstract fun watch()

    protected fun <T> show(states: Flow<T>, view: (T) -> Unit) {
        seen.launch { states.collect { view(it) } }
    }

    /** Shows a notice in the banner; a tap on it takes it away by [dismiss]. */
    protected fun showNotice(notice: Notice?, dismiss: () -> Unit) {
        val banner = findViewById<TextView>(R.id.notice)
        val text = notice?.let { words(it) }.orEmpty()
        if (banner.text.toString() != text) banner.text = text // a text that is set anew is spoken anew
        banner.visibility = if (notice == null) View.GONE else View.VISIBLE
        banner.setOnClickListener { dismiss() }
    }

    protected fun keepAwake(isBusy: Boolean) {
        val flag = WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON
        if (isBusy) window.addFlags(flag) else window.clearFlags(flag)
    }

    @Suppress("DEPRECATION") // what there was before Android 11
    private fun drawBehindSystemBars(window: Window, root: View) {
        if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.R) {
            window.setDecorFitsSystemWindows(false)
        } else {
            root.systemUiVisibility = View.SYSTEM_UI_FLAG_LAYOUT_STABLE or View.SYSTEM_UI_FLAG_LAYOUT_FULLSCREEN or
                View.SYSTEM_UI_FLAG_LAYOUT_HIDE_NAVIGATION
        }
        root.setOnApplyWindowInsetsListener { view, insets ->
            if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.R) {
                val bars = WindowInsets.Type.systemBars() or WindowInsets.Type.displayCutout() or WindowInsets.Type.ime()
                val space = insets.getInsets(bars)
                view.setPadding(space.left, space.top, space.right, space.bottom)
            } else {
                view.setPadding(
                    insets.systemWindowInsetLeft,
                    insets.systemWindowInsetTop,
                    insets.systemWindowInsetRight,
                    insets.systemWindowInsetBottom,
                )
            }
            insets
        }
    }
}
