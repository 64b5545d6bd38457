package com.tinyqmoe.core

import com.tinyqmoe.core.PolicyAction.Companion.ALL
import com.tinyqmoe.core.PolicyAction.DropCacheFolder
import com.tinyqmoe.core.PolicyAction.Pause
import com.tinyqmoe.core.PolicyAction.Reload
import com.tinyqmoe.core.PolicyAction.SetBudget
import com.tinyqmoe.core.PolicyAction.StopGeneration
import com.tinyqmoe.core.PolicyAction.Trim
import com.tinyqmoe.core.PolicyAction.Unload
import com.tinyqmoe.core.PolicyEvent.Background
import com.tinyqmoe.core.PolicyEvent.Foreground
import com.tinyqmoe.core.PolicyEvent.GenerationEnded
import com.tinyqmoe.core.PolicyEvent.GenerationStarted
import com.tinyqmoe.core.PolicyEvent.Loaded
import com.tinyqmoe.core.PolicyEvent.LowDisk
import com.tinyqmoe.core.PolicyEvent.MemoryWarning
import com.tinyqmoe.core.PolicyEvent.Thermal
import com.tinyqmoe.core.PolicyEvent.Unloaded
import org.junit.Assert.assertEquals
import org.junit.Test

class MemoryPolicyTest {
    /** What the last event asks for, of a policy with a budget of 1000 bytes. */
    private fun after(vararg events: PolicyEvent): List<PolicyAction> {
        val policy = MemoryPolicy(1000)
        return events.map { policy.on(it) }.last()
    }

    @Test
    fun aWarningFreesHalfThenAll() {
        assertEquals(listOf(Trim(500)), after(Loaded, MemoryWarning.MODERATE))
        assertEquals(listOf(Trim(250)), after(Loaded, MemoryWarning.MODERATE, MemoryWarning.MODERATE))
        assertEquals(listOf(Trim(ALL)), after(Loaded, MemoryWarning.LOW))
        assertEquals(listOf(Trim(ALL)), after(Loaded, MemoryWarning.CRITICAL))
    }

    @Test
    fun onlyTheLastWarningStopsAnAnswerInFront() {
        assertEquals(listOf(Trim(ALL)), after(Loaded, GenerationStarted, MemoryWarning.LOW))
        assertEquals(listOf(Trim(ALL), StopGeneration(StopReason.MEMORY)), after(Loaded, GenerationStarted, MemoryWarning.CRITICAL))
        assertEquals(listOf(Trim(ALL)), after(Loaded, GenerationStarted, GenerationEnded, MemoryWarning.CRITICAL))
    }

    @Test
    fun inTheBackgroundAWarningUnloads() {
        assertEquals(emptyList<PolicyAction>(), after(Loaded, Background))
        assertEquals(listOf(Trim(500)), after(Loaded, Background, MemoryWarning.MODERATE))
        assertEquals(listOf(Trim(ALL), Unload), after(Loaded, Background, MemoryWarning.LOW))
        assertEquals(listOf(Trim(ALL), StopGeneration(StopReason.BACKGROUND), Unload), after(Loaded, GenerationStarted, Background, MemoryWarning.LOW))
        assertEquals(listOf(Trim(ALL)), after(Background, MemoryWarning.LOW))
        assertEquals(listOf(Trim(ALL)), after(Loaded, Background, MemoryWarning.LOW, MemoryWarning.CRITICAL))
    }

    @Test
    fun whatWasTakenComesBackInFront() {
        assertEquals(listOf(SetBudget(1000), Reload), after(Loaded, Background, MemoryWarning.LOW, Unloaded, Foreground))
        assertEquals(listOf(SetBudget(1000)), after(Loaded, MemoryWarning.MODERATE, Background, Foreground))
        assertEquals(emptyList<PolicyAction>(), after(Loaded, Background, Foreground))
        assertEquals(emptyList<PolicyAction>(), after(Loaded, Background, MemoryWarning.LOW, Unloaded, Foreground, Background, Foreground))
    }

    @Test
    fun aModelThatTheUserClosedDoesNotComeBack() {
        assertEquals(emptyList<PolicyAction>(), after(Loaded, Unloaded, Background, Foreground))
    }

    @Test
    fun aModelThatIsLoadedAfterAWarningHasASmallBudget() {
        assertEquals(listOf(SetBudget(1000)), after(Loaded))
        assertEquals(listOf(SetBudget(500)), after(MemoryWarning.MODERATE, Loaded))
        assertEquals(listOf(SetBudget(0)), after(MemoryWarning.LOW, Loaded))
    }

    @Test
    fun heatSlowsDownThenStops() {
        assertEquals(emptyList<PolicyAction>(), after(Thermal.FAIR))
        assertEquals(listOf(Pause(100)), after(Thermal.SERIOUS))
        assertEquals(emptyList<PolicyAction>(), after(Thermal.SERIOUS, Thermal.SERIOUS))
        assertEquals(listOf(Pause(500)), after(Thermal.CRITICAL))
        assertEquals(listOf(StopGeneration(StopReason.HEAT), Pause(500)), after(GenerationStarted, Thermal.CRITICAL))
        assertEquals(listOf(Pause(0)), after(Thermal.CRITICAL, Thermal.NOMINAL))
    }

    @Test
    fun aFullDiskCostsTheCacheFolder() {
        assertEquals(listOf(DropCacheFolder), after(LowDisk))
    }
}
