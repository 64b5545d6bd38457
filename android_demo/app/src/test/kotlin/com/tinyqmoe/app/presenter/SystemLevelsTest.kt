package com.tinyqmoe.app.presenter

import com.tinyqmoe.core.PolicyEvent
import org.junit.Test
import java.io.File
import kotlin.test.assertEquals
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue

class SystemLevelsTest {
    @Test
    fun `levels of onTrimMemory are warnings`() {
        val running = mapOf(5 to "MODERATE", 10 to "LOW", 15 to "CRITICAL")
        val expected = running + mapOf(20 to null, 40 to "LOW", 60 to "CRITICAL", 80 to "CRITICAL")
        for ((level, name) in expected) {
            assertEquals(name?.let { PolicyEvent.MemoryWarning.valueOf(it) }, SystemLevels.memoryWarning(level), "level $level")
        }
    }

    @Test
    fun `thermal statuses are levels of heat`() {
        val expected = listOf("NOMINAL", "FAIR", "FAIR", "SERIOUS", "CRITICAL", "CRITICAL", "CRITICAL")
        assertEquals(expected.map { PolicyEvent.Thermal.valueOf(it) }, (0..6).map(SystemLevels::thermal))
    }

    @Test
    fun `dirty memory is that of anonymous pages and swap`() {
        val status = "Name:\tx\nRssAnon:\t      10 kB\nRssFile:\t 99 kB\nVmSwap:\t       2 kB\n"
        assertEquals(12L * 1024, ProcessMemory.dirtyBytes(status))
        assertNull(ProcessMemory.dirtyBytes("RssAnon:\t10 kB\n"))
        assertTrue(assertNotNull(ProcessMemory.dirtyBytes(File("/proc/self/status").readText())) > 1_000_000)
    }
}
