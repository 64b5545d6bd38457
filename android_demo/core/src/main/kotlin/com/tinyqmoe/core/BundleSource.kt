package com.tinyqmoe.core

import com.tinyqmoe.core.BundleError.Kind
import java.io.IOException
import java.io.InputStream
import java.net.HttpURLConnection
import java.net.MalformedURLException
import java.net.URL
import java.net.URLEncoder

/** Where a bundle comes from. */
interface BundleSource {
    /** A name that stays the same, to find a partial import again: an address or a folder. */
    val address: String

    /** The name of the bundle's folder, a [BundleStore.isId]. */
    val id: String

    /**
     * The bytes of a file from [offset] on. Throws [BundleError] (NETWORK or DAMAGED). [Opened.offset] is 0 where the
     * source cannot begin elsewhere.
     */
    fun open(path: String, offset: Long): Opened

    /** An open file that begins at [offset] of it. */
    class Opened(val stream: InputStream, val offset: Long)

    companion object {
        /** The last part of an address or a path, as an id. */
        fun idOf(address: String): String {
            val last = address.trimEnd('/').substringAfterLast('/')
            return last.replace(Regex("[^A-Za-z0-9._-]"), "_").trimStart('.').take(100).ifEmpty { "model" }
        }
    }
}

/** A bundle at a web address: that of the folder with manifest.json. Resumes with HTTP's Range. */
class HttpSource(override val address: String, override val id: String = BundleSource.idOf(address)) : BundleSource {
    override fun open(path: String, offset: Long): BundleSource.Opened {
        val encoded = path.split('/').joinToString("/") { URLEncoder.encode(it, "UTF-8").replace("+", "%20") }
        val url = "${address.trimEnd('/')}/$encoded"
        try {
            val connection = URL(url).openConnection() as? HttpURLConnection ?: throw wrongAddress(url)
            connection.connectTimeout = TIMEOUT_MILLIS
            connection.readTimeout = TIMEOUT_MILLIS
            connection.setRequestProperty("Accept-Encoding", "identity") // or Range would count packed bytes
            if (offset > 0) connection.setRequestProperty("Range", "bytes=$offset-")
            return opened(connection, url, offset)
        } catch (error: MalformedURLException) {
            throw wrongAddress(url)
        } catch (error: IOException) {
            throw BundleError(Kind.NETWORK, "$url does not answer: ${error.message}.", GO_ON, error)
        }
    }

    private fun opened(connection: HttpURLConnection, url: String, offset: Long): BundleSource.Opened {
        val code = connection.responseCode
        if (code == HttpURLConnection.HTTP_OK) return BundleSource.Opened(connection.inputStream, 0)
        val begins = connection.getHeaderField("Content-Range").orEmpty().startsWith("bytes $offset-")
        if (code == HttpURLConnection.HTTP_PARTIAL && begins) return BundleSource.Opened(connection.inputStream, offset)
        connection.disconnect()
        val wrong = "Check the address: it must be the folder with manifest.json."
        val hint = if (code == HttpURLConnection.HTTP_NOT_FOUND) wrong else GO_ON
        throw BundleError(Kind.NETWORK, "$url: HTTP status $code.", hint)
    }

    private fun wrongAddress(url: String) =
        BundleError(Kind.NETWORK, "$url is no web address.", "Give an address that begins with https://.")

    private companion object {
        const val TIMEOUT_MILLIS = 20_000
        const val GO_ON = "What has come is kept. Try again to go on from there."
    }
}

/**
 * Files that the user picked. [openFile] opens one by its path in the bundle, and returns null where it is not
 * there: on Android a document of the system's picker.
 */
class PickedSource(
    override val address: String,
    override val id: String,
    private val openFile: (path: String) -> InputStream?,
) : BundleSource {
    override fun open(path: String, offset: Long): BundleSource.Opened {
        val what = "$path is not in $address."
        val stream = openFile(path) ?: throw BundleError(Kind.DAMAGED, what, "Choose the whole folder of the bundle.")
        var left = offset
        while (left > 0) {
            val skipped = stream.skip(left)
            if (skipped > 0) left -= skipped else if (stream.read() >= 0) left-- else break
        }
        return BundleSource.Opened(stream, offset - left)
    }
}
