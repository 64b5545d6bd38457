package com.tinyqmoe.app.device

import android.content.ContentResolver
import android.net.Uri
import android.provider.DocumentsContract
import com.tinyqmoe.core.BundleSource
import com.tinyqmoe.core.PickedSource
import java.io.IOException
import java.io.InputStream

/** A folder of the system's picker ([tree]), with a bundle in it. Its calls ask another app, so they take their time. */
class PickedFolder(private val resolver: ContentResolver, private val tree: Uri) {
    private val root = DocumentsContract.getTreeDocumentId(tree)

    fun source(): BundleSource {
        val name = query(DocumentsContract.buildDocumentUriUsingTree(tree, root)).firstOrNull()?.name
        return PickedSource(tree.toString(), BundleSource.idOf(name ?: root), ::open)
    }

    private fun open(path: String): InputStream? {
        val document = path.split('/').fold<String, String?>(root) { folder, name -> folder?.let { childOf(it, name) } }
        return document?.let { allowed { resolver.openInputStream(DocumentsContract.buildDocumentUriUsingTree(tree, it)) } }
    }

    private fun childOf(folder: String, name: String): String? =
        query(DocumentsContract.buildChildDocumentsUriUsingTree(tree, folder)).firstOrNull { it.name == name }?.document

    /** The leave to read a folder ends with the app. */
    private fun <T> allowed(read: () -> T): T =
        try {
            read()
        } catch (error: SecurityException) {
            throw IOException("The folder may not be read any more: choose it again.", error)
        }

    private class Row(val document: String, val name: String)

    private fun query(uri: Uri): List<Row> {
        val columns = arrayOf(DocumentsContract.Document.COLUMN_DOCUMENT_ID, DocumentsContract.Document.COLUMN_DISPLAY_NAME)
        val cursor = allowed { resolver.query(uri, columns, null, null, null) } ?: return emptyList()
        return cursor.use { generateSequence { if (it.moveToNext()) Row(it.getString(0), it.getString(1)) else null }.toList() }
    }
}
