import Foundation

/// A part of a line.
public struct MarkdownSpan: Equatable, Sendable {
    public enum Style: Sendable { case plain, bold, italic, code }
    public let text: String
    public let style: Style

    public init(_ text: String, _ style: Style = .plain) { (self.text, self.style) = (text, style) }
}

/// A block of text.
public enum MarkdownBlock: Equatable, Sendable {
    case paragraph([MarkdownSpan])
    /// `level` 1 to 6.
    case heading(level: Int, [MarkdownSpan])
    /// `marker` is a bullet, or a number with its dot; `depth` counts from 0.
    case item(marker: String, depth: Int, [MarkdownSpan])
    case code(language: String, text: String)
}

/// The simple part of Markdown that models write. Nothing is an error: what is not known stays text.
public enum Markdown {
    /// The blocks of a text; one that has not come to its end yet is read as far as it goes.
    public static func blocks(_ text: String) -> [MarkdownBlock] {
        var blocks: [MarkdownBlock] = [], paragraph: [String] = []
        var lines = text.split(omittingEmptySubsequences: false, whereSeparator: \.isNewline).map(String.init)[...]
        func flush() {
            if !paragraph.isEmpty { blocks.append(.paragraph(spans(paragraph.joined(separator: "\n")))) }
            paragraph = []
        }
        while let line = lines.popFirst() {
            if let language = fence(line) {
                flush()
                let code = lines.prefix { fence($0) == nil }
                lines = lines.dropFirst(code.count + 1)
                blocks.append(.code(language: language, text: code.joined(separator: "\n")))
            } else if let block = heading(line) ?? item(line) {
                flush()
                blocks.append(block)
            } else if line.trimmed.isEmpty {
                flush()
            } else {
                paragraph.append(line.trimmed)
            }
        }
        flush()
        return blocks
    }

    /// The parts of a line. A mark without its partner stays text.
    static func spans(_ text: String) -> [MarkdownSpan] {
        let marks: [(String, MarkdownSpan.Style)] = [("`", .code), ("**", .bold), ("__", .bold), ("*", .italic), ("_", .italic)]
        var spans: [MarkdownSpan] = [], plain = "", rest = text[...]
        while let character = rest.first {
            let found = marks.first { rest.hasPrefix($0.0) }
            if let (mark, style) = found, let inner = enclosed(rest, mark, style, after: plain.last) {
                if !plain.isEmpty { spans.append(MarkdownSpan(plain)) }
                plain = ""
                spans.append(MarkdownSpan(String(inner), style))
                rest = rest[inner.endIndex...].dropFirst(mark.count)
            } else {
                let count = found?.0.count ?? 1
                plain += found.map { String(rest.prefix($0.0.count)) } ?? String(character)
                rest = rest.dropFirst(count)
            }
        }
        if !plain.isEmpty { spans.append(MarkdownSpan(plain)) }
        return spans
    }

    /// The text between a mark at the beginning and the next one: not empty, and but for code without spaces at its ends.
    private static func enclosed(
        _ text: Substring, _ mark: String, _ style: MarkdownSpan.Style, after: Character?
    ) -> Substring? {
        let inside = text.dropFirst(mark.count)
        guard let end = inside.range(of: mark), end.lowerBound > inside.startIndex else { return nil }
        let inner = inside[..<end.lowerBound]
        if style == .code { return inner }
        let isWord = { (c: Character?) in c.map { $0.isLetter || $0.isNumber } ?? false }
        // In snake_case an underscore is a letter.
        if mark.first == "_", isWord(after) || isWord(inside[end.upperBound...].first) { return nil }
        return inner.first!.isWhitespace || inner.last!.isWhitespace ? nil : inner
    }

    /// The language of a line that begins or ends code; nil for another.
    private static func fence(_ line: String) -> String? {
        let text = line.trimmed
        return text.hasPrefix("```") ? String(text.dropFirst(3)).trimmed : nil
    }

    private static func heading(_ line: String) -> MarkdownBlock? {
        let level = line.prefix { $0 == "#" }.count
        let rest = line.dropFirst(level)
        guard (1...6).contains(level), rest.first == " " else { return nil }
        return .heading(level: level, spans(String(rest).trimmed))
    }

    private static func item(_ line: String) -> MarkdownBlock? {
        let indent = line.prefix { $0 == " " || $0 == "\t" }
        let text = line.dropFirst(indent.count)
        let digits = text.prefix { $0.isASCII && $0.isNumber }
        let after = text.dropFirst(digits.count)
        let isNumber = !digits.isEmpty && digits.count <= 9 && (after.first == "." || after.first == ")")
        let isBullet = digits.isEmpty && "-*+".contains(text.first ?? " ")
        let rest = (isNumber ? after : text).dropFirst()
        guard isNumber || isBullet, rest.first == " " else { return nil }
        let width = indent.reduce(0) { $0 + ($1 == "\t" ? 4 : 1) }
        return .item(marker: isNumber ? "\(digits)." : "•", depth: width / 2, spans(String(rest).trimmed))
    }
}
