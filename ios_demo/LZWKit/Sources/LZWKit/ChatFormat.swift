import Foundation

/// One message of a conversation.
public struct Message: Codable, Equatable, Hashable, Sendable {
    public enum Role: String, Codable, Sendable { case system, user, assistant }
    public var role: Role
    public var content: String

    public init(_ role: Role, _ content: String) { (self.role, self.content) = (role, content) }
}

/// A part of a prompt. Only a control part may hold control tokens: nothing that is typed can end a turn.
public struct TextPart: Equatable, Sendable {
    public let text: String
    public let isControl: Bool

    public init(_ text: String, isControl: Bool) { (self.text, self.isControl) = (text, isControl) }
}

/// The chat format of a model as six strings (docs/chat.md).
public struct ChatFormat: Equatable, Sendable {
    public let strings: [String: String]
    /// Roles whose texts lose the spaces around them first.
    public let trims: Set<String>
    /// What did not derive and why, or empty.
    public let problem: String

    /// Whether the model chats. If not, it completes plain text, and `problem` says why.
    public var chats: Bool { strings["generation"] != nil }
    public var takesSystemPrompt: Bool { strings["system_open"] != nil }

    /// A conversation that ends with a user's message, ready for the answer. `date` is that of today.
    /// Throws BundleError where the model has no such string.
    public func render(_ messages: [Message], date: Date) throws -> [TextPart] {
        guard let first = messages.first, messages.last?.role == .user else {
            throw BundleError(.notSupported, "a conversation ends with a question", hint: "Write one.")
        }
        var parts = [try string(first.role == .system ? "system_open" : "without_system", date)]
        for (i, message) in messages.enumerated() {
            parts.append(said(message))
            let isLast = i == messages.count - 1
            parts.append(try string(isLast ? "generation" : Self.after[message.role]!, date))
        }
        return parts
    }

    private static let after: [Message.Role: String] = [
        .system: "system_close", .user: "user_to_assistant", .assistant: "assistant_to_user",
    ]

    private func string(_ name: String, _ date: Date) throws -> TextPart {
        guard let text = strings[name] else {
            throw BundleError(
                .notSupported, problem.isEmpty ? "the model's chat format has no \(name)" : problem,
                hint: chats ? "Remove the system prompt." : "Let the model complete a text.")
        }
        return TextPart(dated(text, date), isControl: true)
    }

    private func said(_ message: Message) -> TextPart {
        let trimmed = trims.contains(message.role.rawValue)
        return TextPart(trimmed ? message.content.trimmed : message.content, isControl: false)
    }

    /// `{{strftime:FORM}}` becomes the date in that form of C's strftime.
    private func dated(_ text: String, _ date: Date) -> String {
        let pieces = text.components(separatedBy: "{{strftime:")
        return pieces[0] + pieces.dropFirst().map { piece in
            guard let end = piece.range(of: "}}") else { return piece }
            return formatted(date, String(piece[..<end.lowerBound])) + piece[end.upperBound...]
        }.joined()
    }

    private func formatted(_ date: Date, _ form: String) -> String {
        var seconds = time_t(date.timeIntervalSince1970), parts = tm()
        localtime_r(&seconds, &parts)
        var buffer = [CChar](repeating: 0, count: 256)
        let count = strftime(&buffer, buffer.count, form, &parts)
        return String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}

extension String {
    /// Without the white space around it, as Python's `strip`.
    var trimmed: String {
        let scalars = unicodeScalars
        func isSpace(_ scalar: Unicode.Scalar) -> Bool {
            scalar.properties.isWhitespace || (0x1C...0x1F).contains(scalar.value)
        }
        guard let first = scalars.firstIndex(where: { !isSpace($0) }) else { return "" }
        let last = scalars.lastIndex { !isSpace($0) }!
        return String(scalars[first...last])
    }
}
