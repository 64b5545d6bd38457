package com.tinyqmoe.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Test
import java.io.File

class BundleTest {
    private val made = MadeBundle(File(scratch("bundle"), "store/kite"))

    @Test
    fun aGoodOneOpens() {
        val bundle = Bundle.open(made.folder)
        var last = 0L to 0L
        bundle.verify { done, total -> last = done to total }
        assertEquals(bundle.manifest.sessionBytes, last.first)
        assertEquals(last.first, last.second)
    }

    @Test
    fun whatIsMissingOrChangedIsNamedAtOnce() {
        File(made.folder, "tokenizer.json").delete()
        File(made.folder, "model.pte").appendBytes(ByteArray(1))
        refused(BundleError.Kind.DAMAGED, "tokenizer.json is missing", "model.pte has 300001 bytes, expected 300000") { Bundle.open(made.folder) }
    }

    @Test
    fun aFlippedBitIsFoundByItsDigest() {
        File(made.folder, "model.pte").writeBytes(made.weights.clone().also { it[5] = (it[5].toInt() xor 1).toByte() })
        val bundle = Bundle.open(made.folder)
        refused(BundleError.Kind.DAMAGED, "model.pte", "SHA-256") { bundle.verify() }
    }

    @Test
    fun aFolderThatIsNoBundleIsRefused() {
        refused(BundleError.Kind.NO_MANIFEST, "tinyqmoe export") { Bundle.open(scratch("empty")) }
        refused(BundleError.Kind.NO_MANIFEST) { Bundle.open(File("/nowhere")) }
        val bundle = Bundle.open(made.folder)
        refused(BundleError.Kind.TOKENIZER) { bundle.tokenizer() }
        bundle.file("tokenizer.json").delete()
        refused(BundleError.Kind.TOKENIZER, "no tokenizer.json") { bundle.tokenizer() }
    }

    @Test
    fun theStoreListsADamagedOneWithItsProblem() {
        File(made.folder, "model.pte").delete()
        val stored = BundleStore(made.folder.parentFile).list().single()
        assertNull(stored.bundle)
        assertEquals(BundleError.Kind.DAMAGED, stored.problem!!.kind)
    }
}
