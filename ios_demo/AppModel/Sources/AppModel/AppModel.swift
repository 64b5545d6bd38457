import Foundation
import LZWKit
import Observation

/// All of the app but its screens: the parts, and what they do on the device's events (`MemoryPolicy`).
@MainActor @Observable
public final class AppModel {
    public let library: ModelLibrary
    public let host: ModelHost
    public let chat: ChatModel
    public let check: CheckModel
    public let settings: SettingsModel

    @ObservationIgnored private var policy: MemoryPolicy
    @ObservationIgnored private let weights: WeightMemory

    /// `open` loads a model; `transfer` brings files of web addresses. Throws where a folder cannot be made.
    public init(
        folders: AppFolders, weights: WeightMemory, availableBytes: @escaping @Sendable () -> Int,
        transfer: (any FileTransfer)?, open: @escaping ModelHost.Opener
    ) throws {
        let store = try BundleStore(folder: folders.models)
        settings = SettingsModel(file: SettingsFile(folders.settings))
        library = ModelLibrary(store: store, transfer: transfer)
        host = ModelHost(
            store: store, guardFile: LoadGuard(file: folders.loadFlag), availableBytes: availableBytes, open: open)
        chat = ChatModel(
            conversations: try Conversations(folder: folders.conversations), settings: settings, host: host)
        check = CheckModel(host: host)
        self.weights = weights
        policy = MemoryPolicy(budgetBytes: weights.budgetBytes)
        host.tell = { [weak self] in self?.on($0) }
        chat.tell = { [weak self] in self?.on($0) }
        library.willDelete = { [weak self] in self?.letGo($0) }
    }

    /// Called when the app appears.
    public func start() { host.restore(settings.settings.lastModel) }

    /// Loads the model that the user chose, now and at the next start.
    public func choose(_ id: String) {
        chat.stop()
        settings.settings.lastModel = id
        host.load(id)
    }

    /// Whether the screen must stay on.
    public var staysAwake: Bool { chat.isAnswering || host.isLoading || check.isRunning }

    /// Carries out what the policy says of an event.
    public func on(_ event: PolicyEvent) {
        for action in policy.on(event) { perform(action) }
    }

    /// The app goes to the background. iOS suspends it within seconds, sends no warning any more, and ends it when memory
    /// is short: to leave is the last warning.
    public func leave() {
        on(.background)
        on(.memoryWarning(.low))
    }

    private func perform(_ action: PolicyAction) {
        switch action {
        case .trim(let bytes): weights.trim(bytes)
        case .setBudget(let bytes): weights.setBudget(bytes)
        case .stopGeneration(let reason): chat.stop(because: reason.words)
        case .unload:
            check.stop()
            host.sleep()
        case .reload: host.wake()
        case .dropCacheFolder: weights.dropFolder()
        case .pause(let milliseconds): host.setPause(.milliseconds(milliseconds))
        }
    }

    private func letGo(_ id: String) {
        guard host.id == id else { return }
        chat.stop()
        host.unload()
        if settings.settings.lastModel == id { settings.settings.lastModel = nil }
    }
}

/// What the policy does to expanded weights.
public struct WeightMemory: Sendable {
    public let budgetBytes: UInt64
    let trim: @Sendable (UInt64) -> Void
    let setBudget: @Sendable (UInt64) -> Void
    let dropFolder: @Sendable () -> Void

    public init(
        budgetBytes: UInt64, trim: @escaping @Sendable (UInt64) -> Void,
        setBudget: @escaping @Sendable (UInt64) -> Void, dropFolder: @escaping @Sendable () -> Void
    ) {
        self.budgetBytes = budgetBytes
        (self.trim, self.setBudget, self.dropFolder) = (trim, setBudget, dropFolder)
    }

    /// Of the core in this process, which keeps expanded weights in `folder` as well.
    public static func ofTheCore(budgetBytes: UInt64, folder: URL) throws -> WeightMemory {
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try Residency.setCacheFolder(folder)
        return WeightMemory(
            budgetBytes: budgetBytes, trim: { Residency.trim(bytes: $0) }, setBudget: { Residency.setBudget(bytes: $0) },
            dropFolder: {
                try? Residency.setCacheFolder(nil)
                try? FileManager.default.removeItem(at: folder)
            })
    }
}
