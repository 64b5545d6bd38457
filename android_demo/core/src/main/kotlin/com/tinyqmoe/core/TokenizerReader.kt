package com.tinyqmoe.core

import java.text.Normalizer
import java.util.regex.Matcher
import java.util.regex.PatternSyntaxException

/** Reads tokenizer.json. What it does not know is refused by name, so that no text has other ids than the model's. */
internal object TokenizerReader {
    private const val SPACE = "▁"
    private val STRIP = Json.parse("""{"type": "Strip", "content": " ", "start": 1, "stop": 0}""")
    private const val HINT = "Use another model, or run this one where the library `tokenizers` is."

    fun read(text: String): TokenizerParts {
        val json =
            try {
                Json.parse(text)
            } catch (error: JsonError) {
                refuse("it is not JSON: ${error.message}")
            }
        val problems = ArrayList<String>()
        val parts =
            try {
                parts(json as? Map<*, *> ?: refuse("it must hold an object"), problems)
            } catch (error: PatternSyntaxException) {
                refuse("the pattern ${error.pattern} does not compile")
            }
        if (problems.isNotEmpty()) refuse(problems.joinToString("; "))
        return parts
    }

    private fun parts(json: Map<*, *>, problems: MutableList<String>): TokenizerParts {
        val model = Fields("model", json["model"], problems)
        checkModel(json["model"] as? Map<*, *> ?: emptyMap<String, Any?>())
        val vocab = model.fields("vocab").let { v -> v.names.associateWithTo(HashMap()) { v.count(it) } }
        val decoder = json["decoder"]
        val alphabet = if (type(decoder) == "ByteLevel") ByteAlphabet(vocab) else CharacterAlphabet(vocab)
        val spelled = alphabet is ByteAlphabet
        if (!spelled) checkCharacters(model, decoder, alphabet as CharacterAlphabet)
        val normalizers = steps(json["normalizer"], "normalizers")
        val added = added(Fields("", json, problems), normalizers.isEmpty() || normalizers.all { type(it) == "NFC" })
        val normalize = normalizers.map(::normalizer)
        return TokenizerParts(
            added,
            { text -> normalize.fold(text) { t, step -> step(t) } },
            if (spelled) byPatterns(json["pre_tokenizer"]) else byMetaspace(json["pre_tokenizer"]),
            alphabet,
            vocab,
            BytePairs(merges((json["model"] as? Map<*, *>)?.get("merges"), vocab)),
            (json["model"] as? Map<*, *>)?.get("ignore_merges") == true,
            stripsSpace = !spelled && steps(decoder, "decoders").any { type(it) == "Strip" },
        )
    }

    private fun checkModel(model: Map<*, *>) {
        if (model["type"] != "BPE") refuse("the model ${model["type"]} is not BPE")
        for (name in listOf("dropout", "continuing_subword_prefix", "end_of_word_suffix")) {
            val value = model[name]
            if (value != null && value != "") refuse("$name is $value")
        }
    }

    /** Of a vocabulary of characters: the decoder of Llama 2, and a token for each byte. */
    private fun checkCharacters(model: Fields, decoder: Any?, alphabet: CharacterAlphabet) {
        for (step in steps(decoder, "decoders")) {
            val known =
                when (type(step)) {
                    "Replace" -> step["pattern"] == mapOf("String" to SPACE) && step["content"] == " "
                    "Strip" -> step == STRIP
                    "ByteFallback", "Fuse" -> true
                    else -> false
                }
            if (!known) refuse("the decoder ${Json.write(step)}")
        }
        if (!model.flag("byte_fallback")) refuse("byte_fallback is off, and the decoder is not ByteLevel")
        if (!alphabet.complete) refuse("byte_fallback is on, and not every byte has a token")
    }

    /** [plain]: no normalizer changes what added tokens are looked for in. */
    private fun added(root: Fields, plain: Boolean): List<AddedToken> =
        root.list("added_tokens").map { token ->
            val text = token.text("content")
            for (flag in listOf("single_word", "lstrip", "rstrip")) {
                if (token.flag(flag)) refuse("$flag of the added token $text")
            }
            if (token.flag("normalized") && !plain) refuse("the added token $text is looked for in normalized text")
            AddedToken(token.count("id"), text, token.flag("special"))
        }

    private fun merges(value: Any?, vocab: Map<String, Int>): List<IntArray> {
        val merges = value as? List<*> ?: refuse("model.merges is missing")
        return merges.map { merge ->
            val pair = if (merge is String) merge.split(" ") else (merge as? List<*>)?.map { it as? String ?: "" }
            if (pair?.size != 2) refuse("a merge is no pair: ${Json.write(merge)}")
            val tokens = listOf(pair[0], pair[1], pair[0] + pair[1])
            tokens.map { vocab[it] ?: refuse("the merge $merge has no token") }.toIntArray()
        }
    }

    private fun normalizer(step: Map<*, *>): (String) -> String =
        when (type(step)) {
            "NFC" -> { text -> Normalizer.normalize(text, Normalizer.Form.NFC) }
            "Prepend" -> text(step, "prepend").let { prefix -> { text -> if (text.isEmpty()) text else prefix + text } }
            "Replace" -> replacement(step)
            else -> refuse("the normalizer ${Json.write(step)}")
        }

    private fun replacement(step: Map<*, *>): (String) -> String {
        val pattern = step["pattern"] as? Map<*, *> ?: refuse("the normalizer ${Json.write(step)}")
        val content = text(step, "content")
        val plain = pattern["String"] as? String
        if (plain != null) return { text -> text.replace(plain, content) }
        val compiled = Patterns.of(text(pattern, "Regex"))
        return { text -> compiled.matcher(text).replaceAll(Matcher.quoteReplacement(content)) }
    }

    /** Words of a byte-level tokenizer. */
    private fun byPatterns(preTokenizer: Any?): (String, Boolean) -> List<String> {
        val patterns =
            steps(preTokenizer, "pretokenizers").mapNotNull { step ->
                when (type(step)) {
                    "Split" -> splitPattern(step)
                    "Digits" -> if (step["individual_digits"] == true) "\\p{N}" else "\\p{N}+"
                    "ByteLevel" -> {
                        if (step["add_prefix_space"] == true) refuse("add_prefix_space of ByteLevel")
                        if (step["use_regex"] == false) null else Patterns.GPT2
                    }
                    else -> refuse("the pre-tokenizer ${Json.write(step)}")
                }
            }.map(Patterns::of)
        return { text, _ ->
            patterns.fold(listOf(text)) { words, pattern -> words.flatMap { Patterns.isolate(it, pattern) } }
        }
    }

    private fun splitPattern(step: Map<*, *>): String {
        val pattern = (step["pattern"] as? Map<*, *>)?.get("Regex") as? String
        if (pattern == null || step["behavior"] != "Isolated" || step["invert"] == true) {
            refuse("the pre-tokenizer ${Json.write(step)}")
        }
        return pattern
    }

    /** Words of a tokenizer of characters: the whole text, or what [SPACE] begins. */
    private fun byMetaspace(preTokenizer: Any?): (String, Boolean) -> List<String> {
        if (preTokenizer == null) return { text, _ -> if (text.isEmpty()) emptyList() else listOf(text) }
        val step = preTokenizer as? Map<*, *> ?: refuse("the pre-tokenizer")
        val scheme = step["prepend_scheme"]
        val known = type(step) == "Metaspace" && step["replacement"] == SPACE
        if (!known || scheme !in listOf("first", "always", "never")) {
            refuse("the pre-tokenizer ${Json.write(step)}")
        }
        val word = Patterns.of("$SPACE?[^$SPACE]*")
        val splits = step["split"] != false
        return { text, begins ->
            val spaced = text.replace(" ", SPACE)
            val prepends = scheme == "always" || scheme == "first" && begins
            val whole = if (prepends && text.isNotEmpty() && !spaced.startsWith(SPACE)) SPACE + spaced else spaced
            if (whole.isEmpty()) emptyList() else if (splits) Patterns.isolate(whole, word) else listOf(whole)
        }
    }

    /** The steps of a part: none, one, or those of a sequence under [name]. */
    private fun steps(part: Any?, name: String): List<Map<*, *>> =
        when {
            part == null -> emptyList()
            type(part) == "Sequence" ->
                ((part as Map<*, *>)[name] as? List<*>).orEmpty().map { it as? Map<*, *> ?: refuse(name) }
            else -> listOf(part as? Map<*, *> ?: refuse(name))
        }

    private fun text(part: Map<*, *>, name: String): String = part[name] as? String ?: refuse(Json.write(part))

    private fun type(part: Any?): String? = (part as? Map<*, *>)?.get("type") as? String

    private fun refuse(what: String): Nothing =
        throw BundleError(BundleError.Kind.TOKENIZER, "tokenizer.json is of no kind that is known here: $what.", HINT)
}
