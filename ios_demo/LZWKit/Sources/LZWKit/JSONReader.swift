import Foundation

/// What is no JSON, and at which byte.
struct JSONError: Error, CustomStringConvertible {
    let what: String
    let offset: Int
    var description: String { "\(what) at byte \(offset)" }
}

extension JSON {
    /// Of a whole text in UTF-8. Strict as RFC 8259, and a name may come once in an object. Throws JSONError.
    static func parse(_ data: Data) throws -> JSON {
        try data.withUnsafeBytes { bytes in
            var reader = JSONReader(bytes: bytes.bindMemory(to: UInt8.self))
            let value = try reader.value(depth: 0)
            reader.skipSpace()
            guard reader.at == bytes.count else { throw reader.error("something follows the value") }
            return value
        }
    }
}

private struct JSONReader {
    let bytes: UnsafeBufferPointer<UInt8>
    var at = 0
    static let mostLevels = 200

    func error(_ what: String) -> JSONError { JSONError(what: what, offset: at) }
    var next: UInt8? { at < bytes.count ? bytes[at] : nil }

    mutating func skipSpace() {
        while let byte = next, byte == 32 || byte == 10 || byte == 13 || byte == 9 { at += 1 }
    }

    mutating func take(_ character: Character) -> Bool {
        skipSpace()
        guard next == character.asciiValue else { return false }
        at += 1
        return true
    }

    mutating func value(depth: Int) throws -> JSON {
        guard depth < Self.mostLevels else { throw error("it is nested too deeply") }
        skipSpace()
        switch next {
        case UInt8(ascii: "{"): return try object(depth: depth)
        case UInt8(ascii: "["): return try array(depth: depth)
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        default: return .number(try number())
        }
    }

    mutating func word(_ text: StaticString, _ value: JSON) throws -> JSON {
        let end = at + text.utf8CodeUnitCount
        guard end <= bytes.count, memcmp(bytes.baseAddress! + at, text.utf8Start, text.utf8CodeUnitCount) == 0 else {
            throw error("an unknown word")
        }
        at = end
        return value
    }

    mutating func array(depth: Int) throws -> JSON {
        at += 1
        var items: [JSON] = []
        if take("]") { return .array(items) }
        repeat { items.append(try value(depth: depth + 1)) } while take(",")
        guard take("]") else { throw error("a comma or ] is missing") }
        return .array(items)
    }

    mutating func object(depth: Int) throws -> JSON {
        at += 1
        var members: [(name: String, value: JSON)] = []
        var names: Set<[UInt8]> = []
        if take("}") { return .object(members) }
        repeat {
            skipSpace()
            guard next == UInt8(ascii: "\"") else { throw error("a name is missing") }
            let name = try string()
            guard names.insert(Array(name.utf8)).inserted else { throw error("the name \(name) comes twice") }
            guard take(":") else { throw error("a colon is missing") }
            members.append((name, try value(depth: depth + 1)))
        } while take(",")
        guard take("}") else { throw error("a comma or } is missing") }
        return .object(members)
    }

    mutating func number() throws -> String {
        let begin = at
        func isDigit(_ byte: UInt8?) -> Bool { byte.map { (48...57).contains($0) } ?? false }
        func isNext(_ letters: String) -> Bool { next.map { letters.utf8.contains($0) } ?? false }
        if isNext("-") { at += 1 }
        guard isDigit(next) else { throw error("an unknown character") }
        if isNext("0") { at += 1 } else { while isDigit(next) { at += 1 } }
        if isNext(".") {
            at += 1
            guard isDigit(next) else { throw error("a digit is missing") }
            while isDigit(next) { at += 1 }
        }
        if isNext("eE") {
            at += 1
            if isNext("+-") { at += 1 }
            guard isDigit(next) else { throw error("a digit is missing") }
            while isDigit(next) { at += 1 }
        }
        return String(decoding: bytes[begin..<at], as: UTF8.self)
    }

    mutating func string() throws -> String {
        at += 1
        let begin = at
        while let byte = next, byte != UInt8(ascii: "\""), byte != UInt8(ascii: "\\"), byte >= 32 { at += 1 }
        if next == UInt8(ascii: "\"") {  // most have no escape
            defer { at += 1 }
            return try utf8(bytes[begin..<at])
        }
        at = begin
        return try escapedString()
    }

    private func utf8(_ part: Slice<UnsafeBufferPointer<UInt8>>) throws -> String {
        guard let text = String(bytes: part, encoding: .utf8) else { throw error("a text is not UTF-8") }
        return text
    }

    private mutating func escapedString() throws -> String {
        var units: [UInt8] = []
        while let byte = next, byte >= 32 {
            at += 1
            if byte == UInt8(ascii: "\"") {
                return try units.withUnsafeBufferPointer { try utf8($0[...]) }
            }
            if byte != UInt8(ascii: "\\") { units.append(byte) } else { units += String(try escape()).utf8 }
        }
        throw error("a text does not end, or holds a control character")
    }

    private mutating func escape() throws -> Unicode.Scalar {
        guard let letter = next else { throw error("a text does not end") }
        at += 1
        let plain: [UInt8: Unicode.Scalar] = [
            34: "\"", 92: "\\", 47: "/", 98: "\u{8}", 102: "\u{c}", 110: "\n", 114: "\r", 116: "\t",
        ]
        if let scalar = plain[letter] { return scalar }
        guard letter == UInt8(ascii: "u") else { throw error("an unknown escape") }
        let high = try hexadecimal()
        if let scalar = Unicode.Scalar(high) { return scalar }
        guard next == UInt8(ascii: "\\") else { throw error("half a surrogate pair") }
        at += 1
        guard next == UInt8(ascii: "u") else { throw error("half a surrogate pair") }
        at += 1
        let low = try hexadecimal()
        guard (0xD800..<0xDC00).contains(high), (0xDC00..<0xE000).contains(low),
            let scalar = Unicode.Scalar(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
        else { throw error("half a surrogate pair") }
        return scalar
    }

    private mutating func hexadecimal() throws -> UInt32 {
        guard at + 4 <= bytes.count else { throw error("a text does not end") }
        let digits = String(decoding: bytes[at..<at + 4], as: UTF8.self)
        guard digits.allSatisfy(\.isHexDigit), let value = UInt32(digits, radix: 16) else {
            throw error("four hexadecimal digits are missing")
        }
        at += 4
        return value
    }
}
