package com.tinyqmoe.app.presenter

/** Memory of a process that cannot be dropped, of the text of /proc/self/status: anonymous pages and those in swap. */
object ProcessMemory {
    private val COUNTED = listOf("RssAnon:", "VmSwap:")

    /** Bytes; null where the system does not say. */
    fun dirtyBytes(status: String): Long? {
        val kilobytes = COUNTED.map { name ->
            val line = status.lineSequence().firstOrNull { it.startsWith(name) } ?: return null
            line.removePrefix(name).trim().substringBefore(' ').toLongOrNull() ?: return null
        }
        return kilobytes.sum() * 1024
    }
}
