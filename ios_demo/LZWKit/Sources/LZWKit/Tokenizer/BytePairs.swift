/// Byte-pair encoding: the words of a vocabulary, and which pairs are joined first.
struct BytePairs: Sendable {
    /// What words are made of at first.
    enum Symbols: Sendable { case bytes, characters }

    private struct Merge { let rank: Int32, id: Int32 }

    let ids: [[UInt8]: Int32]
    let words: [Int32: [UInt8]]
    private let merges: [UInt64: Merge]
    private let symbols: Symbols
    /// The ids of "<0x00>" to "<0xFF>", for characters that are no words.
    private let byteIds: [Int32]
    /// Whether a whole word of the vocabulary is one token, whatever the merges give.
    private let ignoresMerges: Bool

    init(_ model: JSON, symbols: Symbols) throws {
        self.symbols = symbols
        try Self.checkOptions(model, symbols)
        let vocabulary = try Self.vocabulary(model, symbols)
        ids = vocabulary
        words = Dictionary(vocabulary.map { ($1, $0) }, uniquingKeysWith: { first, _ in first })
        merges = try Self.merges(model, symbols, vocabulary)
        byteIds = try symbols == .bytes ? [] : Self.byteIds(vocabulary)
        ignoresMerges = model["ignore_merges"]?.bool ?? false
    }

    /// Ids of a word.
    func encode(_ word: [UInt8]) -> [Int32] {
        if ignoresMerges, let whole = ids[word] { return [whole] }
        var heap = MergeQueue()
        var chain = symbolIds(word).enumerated().map { Link(id: $1, before: $0 - 1, after: $0 + 1) }
        func propose(_ left: Int) {
            guard left >= 0, chain[left].after < chain.count else { return }
            let pair = (chain[left].id, chain[chain[left].after].id)
            guard let merge = merges[Self.key(pair.0, pair.1)] else { return }
            heap.push(.init(rank: merge.rank, left: Int32(left), pair: pair, id: merge.id))
        }
        for left in chain.indices { propose(left) }
        while let best = heap.pop() {
            let left = Int(best.left), right = chain[left].after
            // The pair may have been joined with others since it was proposed.
            guard chain[left].isThere, right < chain.count, (chain[left].id, chain[right].id) == best.pair else { continue }
            chain[left].id = best.id
            chain[left].after = chain[right].after
            chain[right].isThere = false
            if chain[left].after < chain.count { chain[chain[left].after].before = left }
            propose(chain[left].before)
            propose(left)
        }
        return chain.filter(\.isThere).map(\.id)
    }

    private static func byteIds(_ vocabulary: [[UInt8]: Int32]) throws -> [Int32] {
        try (0..<256).map { byte in
            let name = "<0x" + hexadecimal(UInt32(byte), digits: 2).uppercased() + ">"
            guard let id = vocabulary[Array(name.utf8)] else { throw Tokenizer.unknown("a vocabulary without \(name)") }
            return id
        }
    }

    private struct Link {
        var id: Int32
        var before: Int
        var after: Int
        var isThere = true
    }

    private static func key(_ left: Int32, _ right: Int32) -> UInt64 { UInt64(UInt32(left)) << 32 | UInt64(UInt32(right)) }

    private func symbolIds(_ word: [UInt8]) -> [Int32] {
        if symbols == .bytes { return word.compactMap { ids[[$0]] } }
        return String(decoding: word, as: UTF8.self).unicodeScalars.flatMap { scalar in
            let bytes = Array(String(scalar).utf8)
            return ids[bytes].map { [$0] } ?? bytes.map { byteIds[Int($0)] }
        }
    }

    private static func checkOptions(_ model: JSON, _ symbols: Symbols) throws {
        guard model["type"]?.string == "BPE" else {
            throw Tokenizer.unknown("the model \(model["type"]?.string ?? "without a type")")
        }
        for name in ["continuing_subword_prefix", "end_of_word_suffix"] where !(model[name]?.string ?? "").isEmpty {
            throw Tokenizer.unknown("the option \(name)")
        }
        if symbols == .characters, model["byte_fallback"]?.bool != true {
            throw Tokenizer.unknown("characters without the option byte_fallback")
        }
        if let dropout = model["dropout"]?.double, dropout > 0 { throw Tokenizer.unknown("the option dropout") }
    }

    private static func vocabulary(_ model: JSON, _ symbols: Symbols) throws -> [[UInt8]: Int32] {
        guard let members = model["vocab"]?.members else { throw Tokenizer.unknown("a model without vocab") }
        var ids: [[UInt8]: Int32] = [:]
        ids.reserveCapacity(members.count)
        for (name, value) in members {
            guard let id = value.int.flatMap({ Int32(exactly: $0) }) else { throw Tokenizer.unknown("the id of \(name)") }
            if let word = spelled(name, symbols) { ids[word] = id }
        }
        return ids
    }

    private static func merges(
        _ model: JSON, _ symbols: Symbols, _ ids: [[UInt8]: Int32]
    ) throws -> [UInt64: Merge] {
        let listed = model["merges"]?.array ?? []
        var merges: [UInt64: Merge] = [:]
        merges.reserveCapacity(listed.count)
        for (rank, item) in listed.enumerated() {
            let pair = item.array?.compactMap(\.string) ?? item.string?.split(separator: " ").map(String.init) ?? []
            let words = pair.compactMap { spelled($0, symbols) }
            guard words.count == 2, let left = ids[words[0]], let right = ids[words[1]],
                let joined = ids[words[0] + words[1]]
            else { throw Tokenizer.unknown("merge \(rank), whose words are not in the vocabulary") }
            let merge = Merge(rank: Int32(rank), id: joined)
            merges[key(left, right)] = merge
        }
        return merges
    }

    /// The bytes of a word of the vocabulary; nil where it holds a character that stands for no byte.
    private static func spelled(_ word: String, _ symbols: Symbols) -> [UInt8]? {
        guard symbols == .bytes else { return Array(word.utf8) }
        var bytes: [UInt8] = []
        for scalar in word.unicodeScalars {
            guard let byte = ByteCharacters.bytes[scalar] else { return nil }
            bytes.append(byte)
        }
        return bytes
    }
}

/// The characters that stand for bytes in byte-level vocabularies: the byte's own if it prints, else one from 256 on.
enum ByteCharacters {
    static let bytes: [Unicode.Scalar: UInt8] = {
        var next: UInt32 = 256
        var bytes: [Unicode.Scalar: UInt8] = [:]
        for byte in UInt8.min...UInt8.max {
            let prints = (33...126).contains(byte) || (161...172).contains(byte) || byte >= 174
            bytes[Unicode.Scalar(prints ? UInt32(byte) : next)!] = byte
            if !prints { next += 1 }
        }
        return bytes
    }()
}

/// Pairs that may be joined: the lowest rank first, of equals the first in the word.
private struct MergeQueue {
    struct Entry {
        let rank: Int32
        let left: Int32
        let pair: (Int32, Int32)
        let id: Int32

        func precedes(_ other: Entry) -> Bool { (rank, left) < (other.rank, other.left) }
    }

    private var entries: [Entry] = []

    mutating func push(_ entry: Entry) {
        entries.append(entry)
        var at = entries.count - 1
        while at > 0, entries[at].precedes(entries[(at - 1) / 2]) {
            entries.swapAt(at, (at - 1) / 2)
            at = (at - 1) / 2
        }
    }

    mutating func pop() -> Entry? {
        guard let first = entries.first else { return nil }
        let last = entries.removeLast()
        guard !entries.isEmpty else { return first }
        entries[0] = last
        var at = 0
        while 2 * at + 1 < entries.count {
            var child = 2 * at + 1
            if child + 1 < entries.count, entries[child + 1].precedes(entries[child]) { child += 1 }
            guard entries[child].precedes(entries[at]) else { break }
            entries.swapAt(at, child)
            at = child
        }
        return first
    }
}
