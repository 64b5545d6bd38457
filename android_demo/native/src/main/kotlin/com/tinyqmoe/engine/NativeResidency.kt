package com.tinyqmoe.engine

import com.tinyqmoe.core.CoreStatus
import com.tinyqmoe.core.Residency
import com.tinyqmoe.core.ResidencyState
import java.io.File

/** The residency of the core, which all sessions of this process share. */
object NativeResidency : Residency {
    override fun setBudget(bytes: Long) = Native.setBudget(bytes)

    override fun trim(bytes: Long): Long = Native.trimResidency(bytes)

    override fun setCacheFolder(folder: File?) {
        val status = Native.setCacheFolder(folder?.path?.toByteArray())
        if (status != 0) throw CoreStatus.error(status, "$folder is no folder for expanded weights")
    }

    override fun state(): ResidencyState {
        val s = Native.residency()
        return ResidencyState(s[0], s[1], s[2], s[3])
    }
}
