import Foundation

/// A JSON value that keeps what Foundation's reader loses: the order of members, the spelling of numbers, and strings
/// that differ in code points alone. A manifest's own digest and the words of a vocabulary depend on them.
public enum JSON: Sendable {
    case null
    case bool(Bool)
    case number(String)
    case string(String)
    case array([JSON])
    case object([(name: String, value: JSON)])

    /// The member of an object; nil for another value, or without such a member.
    public subscript(name: String) -> JSON? {
        guard case .object(let members) = self else { return nil }
        return members.first { $0.name == name }?.value
    }

    public var string: String? { if case .string(let text) = self { text } else { nil } }
    public var int: Int? { if case .number(let text) = self { Int(text) } else { nil } }
    public var double: Double? { if case .number(let text) = self { Double(text) } else { nil } }
    public var bool: Bool? { if case .bool(let flag) = self { flag } else { nil } }
    public var array: [JSON]? { if case .array(let items) = self { items } else { nil } }
    public var members: [(name: String, value: JSON)]? { if case .object(let all) = self { all } else { nil } }
    public var isNull: Bool { if case .null = self { true } else { false } }
}

extension JSON {
    /// The value as Python's `json.dumps(value, sort_keys=True)` writes it: what digests of manifests are of.
    /// `without`: a member of the outermost object to leave out.
    func canonical(without: String? = nil) -> [UInt8] {
        var out: [UInt8] = []
        write(to: &out, without: without)
        return out
    }

    private func write(to out: inout [UInt8], without: String? = nil) {
        switch self {
        case .null: out += "null".utf8
        case .bool(let flag): out += (flag ? "true" : "false").utf8
        case .number(let text): out += text.utf8
        case .string(let text): JSON.write(text, to: &out)
        case .array(let items):
            out.append(UInt8(ascii: "["))
            for (i, item) in items.enumerated() {
                if i > 0 { out += ", ".utf8 }
                item.write(to: &out)
            }
            out.append(UInt8(ascii: "]"))
        case .object(let members):
            out.append(UInt8(ascii: "{"))
            let kept = members.filter { $0.name != without }
            // UTF-8 sorts as code points do.
            let sorted = kept.sorted { $0.name.utf8.lexicographicallyPrecedes($1.name.utf8) }
            for (i, member) in sorted.enumerated() {
                if i > 0 { out += ", ".utf8 }
                JSON.write(member.name, to: &out)
                out += ": ".utf8
                member.value.write(to: &out)
            }
            out.append(UInt8(ascii: "}"))
        }
    }

    private static let escapes: [UInt16: String] = [8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: "\\\"", 92: "\\\\"]

    private static func write(_ text: String, to out: inout [UInt8]) {
        out.append(UInt8(ascii: "\""))
        for unit in text.utf16 {
            if let escape = escapes[unit] {
                out += escape.utf8
            } else if (32...126).contains(unit) {
                out.append(UInt8(unit))
            } else {
                let digits = String(unit, radix: 16)
                out += ("\\u" + String(repeating: "0", count: 4 - digits.count) + digits).utf8
            }
        }
        out.append(UInt8(ascii: "\""))
    }
}
