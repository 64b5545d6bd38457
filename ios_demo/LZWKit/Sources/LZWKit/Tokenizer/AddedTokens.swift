import Foundation

/// The tokens of a tokenizer.json that are found in a text before anything else happens to it.
struct AddedTokens: Sendable {
    private struct Token {
        let content: String
        let id: Int32
        let isControl: Bool
        let isNormalized: Bool
    }

    /// By content, and by normalized content.
    let ids: [[UInt8]: Int32], normalizedIds: [[UInt8]: Int32]
    private let bytesById: [Int32: [UInt8]]
    private let control: Pattern?, raw: Pattern?, normalized: Pattern?

    init(_ list: [JSON], normalized: (String) -> String) throws {
        let tokens = try list.map(Self.token)
        func patterned(_ isWanted: (Token) -> Bool) -> [String] { tokens.filter(isWanted).map(\.content) }
        control = Pattern(anyOf: patterned(\.isControl))
        raw = Pattern(anyOf: patterned { !$0.isControl && !$0.isNormalized })
        let found = tokens.filter { !$0.isControl && $0.isNormalized }.map { (normalized($0.content), $0.id) }
        self.normalized = Pattern(anyOf: found.map(\.0))
        ids = Dictionary(tokens.map { (Array($0.content.utf8), $0.id) }, uniquingKeysWith: { first, _ in first })
        normalizedIds = Dictionary(found.map { (Array($0.0.utf8), $0.1) }, uniquingKeysWith: { first, _ in first })
        bytesById = Dictionary(
            tokens.map { ($0.id, $0.isControl ? [] : Array($0.content.utf8)) }, uniquingKeysWith: { first, _ in first })
    }

    func cutAtControl(_ text: String) -> [(text: String, matches: Bool)] { control?.isolate(text) ?? [(text, false)] }
    func cutAtRaw(_ text: String) -> [(text: String, matches: Bool)] { raw?.isolate(text) ?? [(text, false)] }
    func cutAtNormalized(_ text: String) -> [(text: String, matches: Bool)] { normalized?.isolate(text) ?? [(text, false)] }

    /// nil for an id that is no added token.
    func bytes(_ id: Int32) -> [UInt8]? { bytesById[id] }

    private static func token(_ json: JSON) throws -> Token {
        guard let content = json["content"]?.string, let id = json["id"]?.int else {
            throw Tokenizer.unknown("an added token without content or id")
        }
        for option in ["single_word", "lstrip", "rstrip"] where json[option]?.bool == true {
            throw Tokenizer.unknown("the option \(option) of the added token \(content)")
        }
        return Token(
            content: content, id: Int32(id), isControl: json["special"]?.bool ?? false,
            isNormalized: json["normalized"]?.bool ?? false)
    }
}
