package com.tinyqmoe.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class MemoryPolicyTest {
    private val events: Map<String, PolicyEvent> =
        mapOf(
            "background" to PolicyEvent.Background,
            "foreground" to PolicyEvent.Foreground,
            "low_disk" to PolicyEvent.LowDisk,
            "generation_started" to PolicyEvent.GenerationStarted,
            "generation_ended" to PolicyEvent.GenerationEnded,
            "loaded" to PolicyEvent.Loaded,
            "unloaded" to PolicyEvent.Unloaded,
        ) + PolicyEvent.MemoryWarning.entries.associateBy { "memory_${it.name.lowercase()}" } +
            PolicyEvent.Thermal.entries.associateBy { "thermal_${it.name.lowercase()}" }

    /** An action as the table spells it. */
    private fun spelled(action: PolicyAction): String =
        when (action) {
            is PolicyAction.Trim -> "trim " + if (action.bytes == PolicyAction.ALL) "all" else "${action.bytes}"
            is PolicyAction.SetBudget -> "set_budget ${action.bytes}"
            is PolicyAction.StopGeneration -> "stop ${action.reason.name.lowercase()}"
            PolicyAction.Unload -> "unload"
            PolicyAction.Reload -> "reload"
            PolicyAction.DropCacheFolder -> "drop_cache_folder"
            is PolicyAction.Pause -> "pause ${action.millis}"
        }

    @Test
    fun everyEventHasTheActionsOfTheGoldenTable() {
        val cases = Project.table("policy.tsv").groupBy { it.getValue("case") }
        assertTrue(cases.size > 15)
        for ((name, rows) in cases) {
            val policy = MemoryPolicy(1000)
            rows.forEachIndexed { i, row ->
                val actions = policy.on(events.getValue(row.getValue("event"))).map(::spelled)
                assertEquals("$name, event ${i + 1}", row["actions"], actions.joinToString(", ").ifEmpty { "-" })
            }
        }
        assertEquals(events.keys, cases.values.flatten().map { it.getValue("event") }.toSet())
    }
}
