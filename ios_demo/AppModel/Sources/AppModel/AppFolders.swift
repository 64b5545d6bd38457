import Foundation

/// Where the app keeps its files.
public struct AppFolders: Sendable {
    public let models: URL
    /// Compiled forms of Core ML packages: made again when they are gone.
    public let compiled: URL
    /// Expanded weights of the core: likewise.
    public let expandedWeights: URL
    public let conversations: URL
    public let settings: URL
    public let loadFlag: URL

    /// `support` is kept and backed up, but for models; `caches` may be emptied by the system.
    public init(support: URL, caches: URL) {
        models = support.appendingPathComponent("models")
        conversations = support.appendingPathComponent("conversations")
        settings = support.appendingPathComponent("settings.json")
        loadFlag = support.appendingPathComponent("loading")
        compiled = caches.appendingPathComponent("compiled")
        expandedWeights = caches.appendingPathComponent("weights")
    }
}
