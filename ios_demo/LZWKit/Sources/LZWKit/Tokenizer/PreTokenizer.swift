import Foundation

/// What happens to a text before its pairs are joined: `normalizer` and `pre_tokenizer` of a tokenizer.json.
struct PreTokenizer: Sendable {
    private enum Step: Sendable {
        case nfc
        case prepend(String)
        case replace(String, with: String)
        case replacePattern(Pattern, with: String)
        /// Cuts at every match: what matches, and what lies between.
        case isolate(Pattern)
        /// Spaces become the mark, which is put in front of the text too: always, of the first part alone, or never.
        case mark(String, scheme: String)
        /// Cuts before each mark.
        case cutBefore(String)
    }

    private let normalizers: [Step]
    private let splitters: [Step]
    let isByteLevel: Bool

    init(normalizer: JSON?, preTokenizer: JSON?) throws {
        normalizers = try Self.flat(normalizer, "normalizers").map(Self.normalizer)
        let steps = Self.flat(preTokenizer, "pretokenizers")
        splitters = try steps.flatMap(Self.splitter)
        isByteLevel = steps.contains { $0["type"]?.string == "ByteLevel" }
    }

    func normalized(_ text: String) -> String {
        normalizers.reduce(text) { text, step in
            switch step {
            case .nfc: return text.precomposedStringWithCanonicalMapping
            case .prepend(let prefix): return text.isEmpty ? text : prefix + text
            case .replacePattern(let pattern, let new): return pattern.replace(in: text, with: new)
            case .replace(let old, let new): return text.replacingOccurrences(of: old, with: new, options: .literal)
            default: return text
            }
        }
    }

    /// The words of a normalized text. `isFirst`: whether the prompt begins with it.
    func words(_ text: String, isFirst: Bool) -> [String] {
        splitters.reduce([text]) { words, step in
            words.enumerated().flatMap { Self.apply(step, to: $1, isFirst: isFirst && $0 == 0) }
        }
    }

    private static func apply(_ step: Step, to word: String, isFirst: Bool) -> [String] {
        switch step {
        case .isolate(let pattern): return pattern.isolate(word).map(\.text)
        case .mark(let mark, let scheme):
            let marked = word.replacingOccurrences(of: " ", with: mark, options: .literal)
            let isWanted = scheme == "always" || (scheme == "first" && isFirst)
            return [isWanted && !marked.isEmpty && !marked.hasPrefix(mark) ? mark + marked : marked]
        case .cutBefore(let mark):
            return word.components(separatedBy: mark).enumerated().compactMap { i, part in
                i == 0 ? (part.isEmpty ? nil : part) : mark + part
            }
        default: return [word]
        }
    }

    private static func flat(_ json: JSON?, _ members: String) -> [JSON] {
        guard let json, !json.isNull else { return [] }
        return json["type"]?.string == "Sequence" ? (json[members]?.array ?? []).flatMap { flat($0, members) } : [json]
    }

    private static func normalizer(_ json: JSON) throws -> Step {
        switch json["type"]?.string {
        case "NFC": return .nfc
        case "Prepend": return .prepend(json["prepend"]?.string ?? "")
        case "Replace":
            guard let new = json["content"]?.string else { break }
            if let old = json["pattern"]?["String"]?.string { return .replace(old, with: new) }
            guard let pattern = json["pattern"]?["Regex"]?.string else { break }
            return .replacePattern(try Pattern(pattern), with: new)
        default: break
        }
        throw Tokenizer.unknown("the normalizer \(json["type"]?.string ?? "without a type")")
    }

    private static func splitter(_ json: JSON) throws -> [Step] {
        let type = json["type"]?.string ?? "without a type"
        switch type {
        case "Split":
            guard let pattern = json["pattern"]?["Regex"]?.string, json["invert"]?.bool != true
            else { break }
            let behavior = json["behavior"]?.string ?? "absent"
            guard behavior == "Isolated" else { throw Tokenizer.unknown("the behavior \(behavior) of a Split") }
            return [.isolate(try Pattern(pattern))]
        case "Digits":
            return [.isolate(try Pattern(json["individual_digits"]?.bool == true ? "\\p{N}" : "\\p{N}+"))]
        case "ByteLevel":
            if json["add_prefix_space"]?.bool == true { throw Tokenizer.unknown("the option add_prefix_space") }
            return json["use_regex"]?.bool == false ? [] : [.isolate(try Pattern(Pattern.gpt2))]
        case "Metaspace":
            let mark = json["replacement"]?.string ?? "▁", scheme = json["prepend_scheme"]?.string ?? "always"
            return [.mark(mark, scheme: scheme)] + (json["split"]?.bool == false ? [] : [.cutBefore(mark)])
        default: break
        }
        throw Tokenizer.unknown("the pre-tokenizer \(type) as it is set")
    }
}

/// A regular expression in the sense of the tokenizers library.
struct Pattern: Sendable {
    static let gpt2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
    /// White space as Unicode has it, which is not that of ICU's \s.
    private static let space = "\\t-\\r\\u0085\\p{Z}"

    /// `^` and `$` stand at every line, and only a line feed ends one.
    private static let lines: NSRegularExpression.Options = [.anchorsMatchLines, .useUnixLineSeparators]

    private let expression: NSRegularExpression

    /// Throws BundleError for what is no regular expression.
    init(_ pattern: String) throws {
        do { expression = try NSRegularExpression(pattern: Self.spelled(pattern), options: Self.lines) } catch {
            throw Tokenizer.unknown("the pattern \(pattern)")
        }
    }

    /// Of any of some texts; of two that begin alike the longer.
    init?(anyOf texts: [String]) {
        guard !texts.isEmpty else { return nil }
        let longestFirst = texts.sorted { $0.utf16.count > $1.utf16.count }
        let pattern = longestFirst.map(NSRegularExpression.escapedPattern).joined(separator: "|")
        guard let expression = try? NSRegularExpression(pattern: pattern) else { return nil }
        self.expression = expression
    }

    /// A text cut at every match.
    func isolate(_ text: String) -> [(text: String, matches: Bool)] {
        let whole = text as NSString
        var parts: [(text: String, matches: Bool)] = []
        var end = 0
        func add(_ range: NSRange, _ matches: Bool) {
            if range.length > 0 { parts.append((whole.substring(with: range), matches)) }
        }
        for match in expression.matches(in: text, range: NSRange(location: 0, length: whole.length)) {
            add(NSRange(location: end, length: match.range.location - end), false)
            add(match.range, true)
            end = match.range.location + match.range.length
        }
        add(NSRange(location: end, length: whole.length - end), false)
        return parts
    }

    /// A text with another in place of every match.
    func replace(in text: String, with new: String) -> String {
        let whole = NSRange(location: 0, length: text.utf16.count)
        let template = NSRegularExpression.escapedTemplate(for: new)
        return expression.stringByReplacingMatches(in: text, range: whole, withTemplate: template)
    }

    private static func spelled(_ pattern: String) -> String {
        var out = "", isInClass = false, isEscaped = false
        for character in pattern {
            if isEscaped {
                switch character {
                case "s": out += isInClass ? space : "[\(space)]"
                case "S" where !isInClass: out += "[^\(space)]"
                default: out += "\\\(character)"
                }
                isEscaped = false
                continue
            }
            isEscaped = character == "\\"
            if character == "[" { isInClass = true }
            if character == "]" { isInClass = false }
            if !isEscaped { out.append(character) }
        }
        return out
    }
}
