import Foundation

/// The bytes of tokens: `decoder` of a tokenizer.json.
struct TokenDecoder: Sendable {
    private let pairs: BytePairs
    /// What stands for a space in words; nil: words are the bytes themselves.
    private let mark: String?
    private let hasByteNames: Bool
    /// Whether the space in front of a whole text goes.
    let stripsSpace: Bool

    init(_ json: JSON?, _ pairs: BytePairs) throws {
        self.pairs = pairs
        let type = json?["type"]?.string
        if type == "ByteLevel" {
            (mark, hasByteNames, stripsSpace) = (nil, false, false)
            return
        }
        if type == "Metaspace" {
            mark = json?["replacement"]?.string ?? "▁"
            (hasByteNames, stripsSpace) = (false, json?["prepend_scheme"]?.string != "never")
            return
        }
        guard type == "Sequence", let steps = json?["decoders"]?.array else {
            throw Tokenizer.unknown("the decoder \(type ?? "without a type")")
        }
        let names = steps.compactMap { $0["type"]?.string }
        let replace = steps.first { $0["type"]?.string == "Replace" }
        let known = ["Replace", "ByteFallback", "Fuse", "Strip"]
        guard names.count == steps.count, names.allSatisfy(known.contains), replace?["content"]?.string == " ",
            let mark = replace?["pattern"]?["String"]?.string
        else { throw Tokenizer.unknown("the decoder \(names.joined(separator: ", "))") }
        self.mark = mark
        hasByteNames = names.contains("ByteFallback")
        stripsSpace = names.contains("Strip")
    }

    /// Of an id outside the vocabulary none.
    func bytes(_ id: Int32) -> [UInt8] {
        guard let word = pairs.words[id] else { return [] }
        guard let mark else { return word }
        if hasByteNames, word.count == 6, word.starts(with: "<0x".utf8), word[5] == UInt8(ascii: ">"),
            let byte = UInt8(String(decoding: word[3..<5], as: UTF8.self), radix: 16)
        {
            return [byte]
        }
        return Array(String(decoding: word, as: UTF8.self).replacingOccurrences(of: mark, with: " ").utf8)
    }
}
