package com.tinyqmoe.core

import java.util.PriorityQueue

/**
 * The merges of a byte-pair encoding: which two tokens become which, and in what order. Arrays of numbers, because a
 * vocabulary has hundreds of thousands of them.
 */
internal class BytePairs(merges: List<IntArray>) {
    private val capacity = Integer.highestOneBit(maxOf(merges.size, 1)) * 4
    private val keys = LongArray(capacity) { EMPTY }
    private val ranks = IntArray(capacity)
    private val joined = IntArray(capacity)

    init {
        for ((rank, merge) in merges.withIndex()) {
            val slot = slot(merge[0], merge[1])
            keys[slot] = key(merge[0], merge[1])
            ranks[slot] = rank
            joined[slot] = merge[2]
        }
    }

    /** The tokens of a word: the pair of the lowest rank is joined, the first of equals, until none has a rank. */
    fun merge(symbols: IntArray): IntArray {
        val next = IntArray(symbols.size) { it + 1 }
        val previous = IntArray(symbols.size) { it - 1 }
        val queue = PriorityQueue<Long>()

        fun offer(at: Int) {
            if (at < 0 || next[at] >= symbols.size) return
            val slot = slot(symbols[at], symbols[next[at]])
            if (keys[slot] != EMPTY) queue.add((ranks[slot].toLong() shl POSITION_BITS) or at.toLong())
        }
        for (at in symbols.indices) offer(at)
        while (true) {
            val best = queue.poll() ?: break
            val at = (best and POSITION_MASK).toInt()
            if (symbols[at] < 0 || next[at] >= symbols.size) continue
            val slot = slot(symbols[at], symbols[next[at]])
            val gone = keys[slot] == EMPTY || ranks[slot].toLong() != best shr POSITION_BITS
            if (gone) continue // one of the two was joined with another
            val right = next[at]
            symbols[at] = joined[slot]
            symbols[right] = GONE
            next[at] = next[right]
            if (next[at] < symbols.size) previous[next[at]] = at
            offer(previous[at])
            offer(at)
        }
        return symbols.filter { it != GONE }.toIntArray()
    }

    /** The slot of a pair, or the empty one where it belongs. */
    private fun slot(left: Int, right: Int): Int {
        val key = key(left, right)
        var slot = ((key * MULTIPLIER) ushr HASH_SHIFT).toInt() and (capacity - 1)
        while (keys[slot] != key && keys[slot] != EMPTY) slot = (slot + 1) and (capacity - 1)
        return slot
    }

    private fun key(left: Int, right: Int): Long = (left.toLong() shl 32) or right.toLong()

    private companion object {
        const val EMPTY = -1L
        const val GONE = -1
        const val POSITION_BITS = 31
        const val POSITION_MASK = (1L shl POSITION_BITS) - 1
        const val MULTIPLIER = -0x61c8864680b583ebL
        const val HASH_SHIFT = 24
    }
}
