package com.tinyqmoe.app

import android.content.Context
import android.os.Build
import com.tinyqmoe.app.device.DeviceMemory
import com.tinyqmoe.app.device.MainThread
import com.tinyqmoe.app.presenter.ChatPresenter
import com.tinyqmoe.app.presenter.CheckPresenter
import com.tinyqmoe.app.presenter.ConversationsPresenter
import com.tinyqmoe.app.presenter.Importer
import com.tinyqmoe.app.presenter.ModelHolder
import com.tinyqmoe.app.presenter.ModelsPresenter
import com.tinyqmoe.app.presenter.PolicyRunner
import com.tinyqmoe.app.presenter.SettingsPresenter
import com.tinyqmoe.app.presenter.Start
import com.tinyqmoe.app.presenter.StoredModels
import com.tinyqmoe.core.BundleImport
import com.tinyqmoe.core.BundleStore
import com.tinyqmoe.core.Conversations
import com.tinyqmoe.core.LoadGuard
import com.tinyqmoe.core.MemoryPolicy
import com.tinyqmoe.core.SettingsFile
import com.tinyqmoe.engine.NativeResidency
import com.tinyqmoe.engine.NativeSession
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.SupervisorJob
import java.io.File

/** The parts of the app, which live as long as its process. Screens only show them, so that turning the device loses nothing. */
class AppGraph(context: Context) {
    val scope = CoroutineScope(SupervisorJob() + MainThread)
    val memory = DeviceMemory(context)

    private val store = BundleStore(File(context.noBackupFilesDir, "models"))
    private val guard = LoadGuard(File(context.noBackupFilesDir, "loading"))
    private val device = "${Build.MANUFACTURER} ${Build.MODEL}, Android ${Build.VERSION.RELEASE}"
    private val models = StoredModels(store, NativeSession, { memory.freeBytes }, device)
    private val stored = Conversations(File(context.filesDir, "conversations"))

    // A quarter of what is free leaves room for the KV cache and the system's own.
    private val memoryPolicy = MemoryPolicy(memory.freeBytes / 4)
    val policy = PolicyRunner(memoryPolicy::on, NativeResidency)

    val settings = SettingsPresenter(SettingsFile(File(context.filesDir, "settings.json")))
    val holder = ModelHolder(models, guard, scope, policy::on)
    val chat = ChatPresenter(stored, holder, { settings.state.value }, scope, policy::on)
    val conversations = ConversationsPresenter(stored, chat, scope)
    val check = CheckPresenter(models, holder, scope)
    val list = ModelsPresenter(models, holder, Importer { source, progress -> BundleImport(source, store).run(progress) }, scope)
    val start = Start(guard, settings, holder, scope)

    init {
        policy.connect(holder, chat)
    }
}
