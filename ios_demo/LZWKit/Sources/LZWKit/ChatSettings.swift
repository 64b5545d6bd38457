import Foundation

/// What the user set.
public struct ChatSettings: Codable, Equatable, Sendable {
    /// Empty: the model's own, or none.
    public var systemPrompt = ""
    public var sampling = Sampling(temperature: 0.7, topP: 0.9)
    public var maxNewTokens = 512
    /// The model to load at the start.
    public var lastModel: String?

    public init() {}
}

/// Settings in a JSON file.
public struct SettingsFile: Sendable {
    private let file: URL

    public init(_ file: URL) { self.file = file }

    /// The settings that were kept; the defaults where the file is absent or holds no settings.
    public func read() -> ChatSettings {
        (try? JSONDecoder().decode(ChatSettings.self, from: Data(contentsOf: file))) ?? ChatSettings()
    }

    /// Keeps settings; the file is replaced whole.
    public func write(_ settings: ChatSettings) throws {
        try JSONEncoder().encode(settings).write(to: file, options: .atomic)
    }
}
