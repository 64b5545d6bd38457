package com.tinyqmoe.core

/**
 * What is wrong with a bundle, a download or a call, in whole sentences for a person.
 *
 * The message says what, where, what was found and what was expected; [hint] is a next step that works. [kind] is for
 * an app that has words of its own.
 */
class BundleError(
    val kind: Kind,
    message: String,
    val hint: String,
    cause: Throwable? = null,
) : Exception(message, cause) {
    enum class Kind {
        /** manifest.json is absent or is no JSON. */
        NO_MANIFEST,

        /** Made by another version of the exporter. */
        SCHEMA_VERSION,

        /** manifest.json is not what was sealed. */
        CHANGED,

        /** manifest.json lacks something, or has it in another form. */
        INVALID,

        /** No package that a session can run. */
        NO_PACKAGE,

        /** A file is missing, has another size, or other bytes. */
        DAMAGED,

        /** tokenizer.json is of a kind that is not known here. */
        TOKENIZER,

        /** A download did not come; what came is kept. */
        NETWORK,

        /** The same import runs already. */
        BUSY,

        /** The storage has no room. */
        NO_SPACE,

        /** The native core refused. */
        CORE,

        /** More tokens than the context has room for. */
        CONTEXT,
    }

    /** Message and hint, for a dialog. */
    val words: String get() = "$message\n$hint"
}

/** Status codes of the C core (tinyqmoe_status in tinyqmoe.h) in words. */
enum class CoreStatus(val number: Int, val words: String) {
    TRUNCATED(1, "a weight ends too early"),
    BAD_MAGIC(2, "a weight does not begin as a weight does"),
    BAD_VERSION(3, "the weights have another version of the format"),
    BAD_HEADER_CRC(4, "the header of a weight is damaged"),
    BAD_RESERVED(5, "the header of a weight has unknown bits"),
    BAD_CODEC(6, "the weights have a codec that is not known"),
    BAD_ALPHABET(7, "the levels of a weight are no alphabet"),
    BAD_SHAPE(8, "a weight has another shape than the network needs"),
    BAD_ENTRIES(9, "a dictionary has a wrong number of entries"),
    BAD_SECTION(10, "a section of a weight does not lie where it should"),
    BAD_TABLES_CRC(11, "the tables of a weight are damaged"),
    BAD_DICTIONARY(12, "a dictionary is damaged"),
    BAD_INDEX(13, "the row index of a weight is damaged"),
    BAD_PADDING(14, "the padding of a weight is not zero"),
    BAD_PAYLOAD_CRC(15, "the codes of a weight are damaged"),
    BAD_CODE(16, "a code of a weight is none"),
    BAD_ROW_LENGTH(17, "a row of a weight has another length"),
    BAD_LEVEL(18, "a level of a weight is outside its alphabet"),
    BAD_ARGUMENT(64, "the call does not fit the session"),
    OUT_OF_MEMORY(65, "the system has no memory for the model"),
    BUFFER_TOO_SMALL(66, "a buffer is too small"),
    NON_FINITE(67, "the network's numbers overflowed"),
    BAD_ID(68, "a token is outside the model's vocabulary"),
    NO_ISA(69, "the processor lacks the instruction set"),
    ;

    companion object {
        /**
         * The error for a status that is not OK. [said] is what the core said of a bundle that does not open, or
         * empty.
         */
        fun error(number: Int, said: String): BundleError {
            val status = entries.firstOrNull { it.number == number }
            val words = status?.words ?: "the core answered with status $number"
            val what = if (said.isEmpty()) words else if (status == BAD_ARGUMENT) said else "$words: $said"
            val hint =
                when (status) {
                    OUT_OF_MEMORY -> "Close other apps, or choose a smaller model or context."
                    BAD_ARGUMENT, BAD_ID, BUFFER_TOO_SMALL ->
                        if (said.isEmpty()) "Start the conversation anew; if it happens again, report it."
                        else "Download or copy the model again."
                    NO_ISA -> "Use the default instruction set."
                    else -> "Download or copy the model again."
                }
            return BundleError(BundleError.Kind.CORE, "$what (${status?.name ?: "status"} $number)", hint)
        }
    }
}
