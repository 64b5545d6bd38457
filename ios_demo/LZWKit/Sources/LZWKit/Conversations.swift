import Foundation

/// A conversation. `messages` holds no system prompt: that is a setting.
public struct Conversation: Codable, Equatable, Sendable, Identifiable {
    public let id: String
    public var title: String
    public var changed: Date
    public var messages: [Message]

    public init(id: String = UUID().uuidString, title: String = "", changed: Date, messages: [Message] = []) {
        (self.id, self.title, self.changed, self.messages) = (id, title, changed, messages)
    }
}

/// Several conversations on disk, a JSON file each in `folder`. Files are replaced whole, so a crash loses nothing that was
/// there. A file that cannot be read stays, and is named by `unreadable`.
public struct Conversations: Sendable {
    private let folder: URL
    private let now: @Sendable () -> Date

    /// Makes the folder where there is none.
    public init(folder: URL, now: @escaping @Sendable () -> Date = { Date() }) throws {
        (self.folder, self.now) = (folder, now)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    }

    /// All, the last changed first.
    public func list() -> [Conversation] {
        names().compactMap { try? read($0) }.sorted { ($0.changed, $0.id) > ($1.changed, $1.id) }
    }

    /// Names of files that are no conversations.
    public func unreadable() -> [String] { names().filter { (try? read($0)) == nil } }

    public func conversation(_ id: String) -> Conversation? { try? read("\(id).json") }

    /// A new conversation, which is on disk when something is said in it.
    public func create() -> Conversation {
        Conversation(changed: now())
    }

    /// Adds a message; the first one of a user gives the title where there is none.
    public func add(_ message: Message, to conversation: Conversation) throws -> Conversation {
        try change(conversation) {
            $0.messages.append(message)
            if $0.title.isEmpty, message.role == .user { $0.title = Self.title(message.content) }
        }
    }

    /// Replaces the user's message number `index` and forgets what followed it, to say it in other words.
    public func edit(_ conversation: Conversation, at index: Int, content: String) throws -> Conversation {
        precondition(conversation.messages[index].role == .user)
        return try change(conversation) {
            $0.messages.removeSubrange((index + 1)...)
            $0.messages[index].content = content
        }
    }

    /// Forgets the last answer, to hear another.
    public func retry(_ conversation: Conversation) throws -> Conversation {
        try change(conversation) {
            if $0.messages.last?.role == .assistant { $0.messages.removeLast() }
        }
    }

    public func rename(_ conversation: Conversation, to title: String) throws -> Conversation {
        try change(conversation) { $0.title = title }
    }

    public func delete(_ id: String) throws {
        let url = folder.appendingPathComponent("\(id).json")
        if FileManager.default.fileExists(atPath: url.path) { try FileManager.default.removeItem(at: url) }
    }

    private func change(_ conversation: Conversation, _ body: (inout Conversation) -> Void) throws -> Conversation {
        var changed = conversation
        body(&changed)
        changed.changed = now()
        try JSONEncoder().encode(changed).write(
            to: folder.appendingPathComponent("\(changed.id).json"), options: .atomic)
        return changed
    }

    private func names() -> [String] {
        let all = (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
        return all.filter { $0.hasSuffix(".json") }
    }

    private func read(_ name: String) throws -> Conversation {
        try JSONDecoder().decode(Conversation.self, from: Data(contentsOf: folder.appendingPathComponent(name)))
    }

    /// The first line of a text, of at most 60 characters.
    private static func title(_ text: String) -> String {
        let line = text.trimmed.split(whereSeparator: \.isNewline).first.map(String.init) ?? ""
        return line.count > 60 ? line.prefix(59) + "…" : line
    }
}
