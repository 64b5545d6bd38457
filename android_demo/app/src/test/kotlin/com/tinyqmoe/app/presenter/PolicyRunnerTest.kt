package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.Conversations
import com.tinyqmoe.core.PolicyAction
import com.tinyqmoe.core.PolicyEvent
import com.tinyqmoe.core.Settings
import com.tinyqmoe.core.StopReason
import kotlinx.coroutines.CoroutineScope
import org.junit.Test
import kotlin.test.assertEquals
import kotlin.test.assertIs

class PolicyRunnerTest {
    private val models = FakeModels()
    private val residency = FakeResidency()
    private var actions = emptyList<PolicyAction>()
    private val runner = PolicyRunner({ actions }, residency)
    private lateinit var chat: ChatPresenter

    private suspend fun CoroutineScope.connect(): ModelHolder {
        val holder = loadedHolder(models)
        chat = ChatPresenter(Conversations(temporaryFolder()), holder, { Settings() }, this) {}
        runner.connect(holder, chat)
        return holder
    }

    private fun act(vararg asked: PolicyAction, event: PolicyEvent = PolicyEvent.MemoryWarning.LOW) {
        actions = asked.toList()
        runner.on(event)
    }

    @Test
    fun `memory is freed once a model was loaded, in the order of the policy`() = onOneThread {
        connect()
        act(PolicyAction.Trim(5), PolicyAction.SetBudget(0))
        assertEquals(emptyList(), residency.calls)
        act(PolicyAction.SetBudget(9), event = PolicyEvent.Loaded)
        act(PolicyAction.Trim(5), PolicyAction.SetBudget(0))
        assertEquals(listOf("budget 9", "trim 5", "budget 0"), residency.calls)
    }

    @Test
    fun `the model goes and comes back`() = onOneThread {
        val holder = connect()
        act(PolicyAction.Unload)
        holder.settle()
        assertEquals(0, models.inMemory)
        act(PolicyAction.Reload)
        holder.settle()
        assertIs<ModelState.Ready>(holder.state.value)
    }

    @Test
    fun `an answer is stopped with a word, or slowed down`() = onOneThread {
        connect()
        models.script = { hang("half") }
        chat.send("a")
        until { chat.state.value.answer == "half" }
        act(PolicyAction.Pause(20), PolicyAction.StopGeneration(StopReason.HEAT))
        chat.settle()
        assertEquals(20L, models.pauseMillis)
        assertEquals(Notice.Stopped(StopReason.HEAT), chat.state.value.notice)
    }

    @Test
    fun `the folder of expanded weights goes where the storage is full`() = onOneThread {
        connect()
        act(event = PolicyEvent.Loaded)
        act(PolicyAction.DropCacheFolder, event = PolicyEvent.LowDisk)
        assertEquals(listOf("folder null"), residency.calls)
    }
}
