/// Text out of tokens, in whole characters: a character may take several tokens.
public struct TextStream: Sendable {
    private let tokenizer: Tokenizer
    private var held: [UInt8] = []

    public init(_ tokenizer: Tokenizer) { self.tokenizer = tokenizer }

    /// The characters that a token completes.
    public mutating func step(_ token: Int32) -> String {
        held += tokenizer.bytes(token)
        let whole = held.count - Self.unfinished(held)
        defer { held.removeFirst(whole) }
        return String(decoding: held[..<whole], as: UTF8.self)
    }

    /// What is left when no token follows: a replacement character where a character is not complete, or nothing.
    public mutating func rest() -> String {
        defer { held = [] }
        return String(decoding: held, as: UTF8.self)
    }

    /// Number of bytes at the end that begin a character and do not end it.
    private static func unfinished(_ bytes: [UInt8]) -> Int {
        for count in 1...3 where count <= bytes.count {
            let byte = bytes[bytes.count - count]
            if byte & 0xC0 == 0x80 { continue }
            let length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1
            return length > count ? count : 0
        }
        return 0
    }
}
