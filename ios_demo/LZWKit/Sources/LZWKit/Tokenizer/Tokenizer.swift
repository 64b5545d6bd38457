import Foundation

/// A bundle's tokenizer.json: byte-pair encoding of bytes (GPT-2, Llama 3, Qwen2, SmolLM2), or of characters with a
/// fallback to bytes (Llama 2, Mistral). Ids are those of the library `tokenizers`. Any thread may use it.
public final class Tokenizer: Sendable {
    private let pairs: BytePairs
    private let splitting: PreTokenizer
    private let added: AddedTokens
    private let decoding: TokenDecoder
    /// Ids that a plain prompt begins and ends with.
    private let prefix: [Int32], suffix: [Int32]

    /// Of the bytes of a tokenizer.json; takes a second for large ones. Throws BundleError that names what is not known
    /// here.
    public init(data: Data) throws {
        let json: JSON
        do { json = try JSON.parse(data) } catch {
            throw BundleError(.damaged, "tokenizer.json is not JSON: \(error)", hint: "Load the model again.")
        }
        splitting = try PreTokenizer(normalizer: json["normalizer"], preTokenizer: json["pre_tokenizer"])
        guard let model = json["model"] else { throw Tokenizer.unknown("a file without a model") }
        pairs = try BytePairs(model, symbols: splitting.isByteLevel ? .bytes : .characters)
        added = try AddedTokens(json["added_tokens"]?.array ?? [], normalized: splitting.normalized)
        decoding = try TokenDecoder(json["decoder"], pairs)
        (prefix, suffix) = try Tokenizer.surroundings(json["post_processor"])
    }

    /// Ids of a text alone. `control`: whether it may hold control tokens, which what a user typed may not.
    public func encode(_ text: String, control: Bool = false) -> [Int32] {
        encode([TextPart(text, isControl: control)])
    }

    /// Ids of a prompt in parts, of which only control parts may hold control tokens. Text between two control tokens is
    /// encoded in one piece, as if it had been one part.
    public func encode(_ parts: [TextPart]) -> [Int32] {
        var ids: [Int32] = [], plain = ""
        func flush() {
            ids += encodePlain(plain, isFirst: ids.isEmpty)
            plain = ""
        }
        for part in parts {
            guard part.isControl else {
                plain += part.text
                continue
            }
            for (text, isControl) in added.cutAtControl(part.text) {
                guard isControl else {
                    plain += text
                    continue
                }
                flush()
                ids.append(added.ids[Array(text.utf8)]!)
            }
        }
        flush()
        return ids
    }

    /// Ids of a text that the model shall go on with: with what the tokenizer puts around it, such as BOS.
    public func encodePrompt(_ text: String) -> [Int32] { prefix + encode(text) + suffix }

    /// The text of tokens; control tokens have none.
    public func decode(_ ids: [Int32]) -> String {
        let bytes = ids.flatMap(bytes)
        let begin = decoding.stripsSpace && bytes.first == UInt8(ascii: " ") ? 1 : 0
        return String(decoding: bytes[begin...], as: UTF8.self)
    }

    /// The bytes of one token inside of a text; of a control token none.
    public func bytes(_ id: Int32) -> [UInt8] { added.bytes(id) ?? decoding.bytes(id) }

    /// Ids of what holds no control token. `isFirst`: whether the prompt begins with it.
    private func encodePlain(_ text: String, isFirst: Bool) -> [Int32] {
        var ids: [Int32] = []
        for (raw, isToken) in added.cutAtRaw(text) {
            if isToken {
                ids.append(added.ids[Array(raw.utf8)]!)
                continue
            }
            for (part, isToken) in added.cutAtNormalized(splitting.normalized(raw)) {
                if isToken {
                    ids.append(added.normalizedIds[Array(part.utf8)]!)
                } else {
                    let words = splitting.words(part, isFirst: isFirst && ids.isEmpty)
                    ids += words.flatMap { pairs.encode(Array($0.utf8)) }
                }
            }
        }
        return ids
    }

    static func unknown(_ what: String) -> BundleError {
        BundleError(
            .notSupported, "tokenizer.json: this app does not know \(what)",
            hint: "Use a model whose tokenizer is a byte-pair encoding, as those of Llama, Mistral, Qwen2 and SmolLM2.")
    }

    /// What a post-processor puts before and after a text.
    private static func surroundings(_ json: JSON?) throws -> ([Int32], [Int32]) {
        guard let json, !json.isNull else { return ([], []) }
        switch json["type"]?.string {
        case "ByteLevel": return ([], [])
        case "Sequence":
            return try (json["processors"]?.array ?? []).map(surroundings).reduce(([], [])) {
                ($1.0 + $0.0, $0.1 + $1.1)
            }
        case "TemplateProcessing":
            var before: [Int32] = [], after: [Int32] = [], isBefore = true
            for item in json["single"]?.array ?? [] {
                guard let name = item["SpecialToken"]?["id"]?.string else {
                    isBefore = false
                    continue
                }
                let ids = json["special_tokens"]?[name]?["ids"]?.array?.compactMap { $0.int.map(Int32.init) } ?? []
                if isBefore { before += ids } else { after += ids }
            }
            return (before, after)
        default: throw unknown("the post-processor \(json["type"]?.string ?? "without a type")")
        }
    }
}

extension ModelBundle {
    /// The tokenizer of the bundle. Takes a second for large ones. Throws BundleError.
    public func tokenizer() throws -> Tokenizer {
        guard let data = try? Data(contentsOf: file(Manifest.tokenizerName)) else {
            throw BundleError(.missing, "\(Manifest.tokenizerName) is missing", hint: "Load the model again.")
        }
        return try Tokenizer(data: data)
    }
}
