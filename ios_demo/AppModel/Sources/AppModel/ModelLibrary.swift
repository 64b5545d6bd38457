import Foundation
import LZWKit
import Observation

/// An import that runs, waits, or went wrong.
public struct ImportRow: Equatable, Identifiable, Sendable {
    public enum Stage: Equatable, Sendable {
        case running
        case paused
        case failed(Problem)
    }

    public let id: String
    public let source: URL
    public let format: Package.Format
    public var stage: Stage
    public var doneBytes: Int
    /// Nil before the manifest is read.
    public var totalBytes: Int?

    /// 0 to 1.
    public var fraction: Double {
        guard let totalBytes, totalBytes > 0 else { return 0 }
        return min(1, Double(doneBytes) / Double(totalBytes))
    }
}

/// The models on this device, and those on their way.
@MainActor @Observable
public final class ModelLibrary {
    public private(set) var models: [StoredBundle] = []
    public private(set) var imports: [ImportRow] = []
    public var problem: Problem?

    @ObservationIgnored private let store: BundleStore
    @ObservationIgnored private let transfer: (any FileTransfer)?
    @ObservationIgnored private var tasks: [String: Task<Void, Never>] = [:]
    /// Told the id of a model that is deleted, before it is.
    @ObservationIgnored public var willDelete: (String) -> Void = { _ in }

    /// `transfer`: of web addresses; nil for the kit's own.
    public init(store: BundleStore, transfer: (any FileTransfer)? = nil) {
        (self.store, self.transfer) = (store, transfer)
        refresh()
    }

    public func refresh() {
        models = store.models()
        let known = Set(tasks.keys)
        let waiting = store.partialImports().filter { !known.contains($0.id) }.map {
            ImportRow(
                id: $0.id, source: $0.source, format: $0.format, stage: .paused, doneBytes: $0.doneBytes,
                totalBytes: $0.totalBytes)
        }
        let failed = imports.filter { if case .failed = $0.stage { true } else { false } }
        let running = imports.filter { known.contains($0.id) }
        let shown = running + failed
        imports = (shown + waiting.filter { row in !shown.contains { $0.id == row.id } }).sorted { $0.id < $1.id }
    }

    /// Imports the model at an address that the user typed.
    public func add(address: String, format: Package.Format) {
        let typed = address.trimmingCharacters(in: .whitespacesAndNewlines)
        guard let url = URL(string: typed), ["http", "https"].contains(url.scheme), url.host?.isEmpty == false else {
            problem = Problem(
                .other, "\(typed.isEmpty ? "Nothing" : typed) is no web address",
                hint: "Give the https address of the folder that has manifest.json.")
            return
        }
        start(url, format)
    }

    /// Imports the model in a folder that the user picked.
    public func add(folder: URL, format: Package.Format) { start(folder, format) }

    /// What came is kept.
    public func pause(_ id: String) { tasks[id]?.cancel() }

    public func resume(_ id: String) {
        guard let row = imports.first(where: { $0.id == id }) else { return }
        start(row.source, row.format)
    }

    /// Deletes a model, or an import and what came of it.
    public func delete(_ id: String) async {
        willDelete(id)
        tasks[id]?.cancel()
        await tasks[id]?.value
        do { try store.delete(id) } catch { problem = Problem(error) }
        imports.removeAll { $0.id == id }
        refresh()
    }

    /// Waits for an import to end or pause: for tests.
    public func settle(_ id: String) async { await tasks[id]?.value }

    private func start(_ source: URL, _ format: Package.Format) {
        let work = BundleImport(
            from: source, to: store, format: format, transfer: source.isFileURL ? nil : transfer)
        guard tasks[work.id] == nil else { return }
        change(work.id, source, format) { $0.stage = .running }
        tasks[work.id] = Task {
            await run(work, source, format)
            tasks[work.id] = nil
            refresh()
        }
    }

    private func run(_ work: BundleImport, _ source: URL, _ format: Package.Format) async {
        let scoped = source.isFileURL && source.startAccessing()
        defer { if scoped { source.stopAccessing() } }
        do {
            _ = try await work.run { progress in
                Task { @MainActor [weak self] in self?.advance(work.id, progress) }
            }
            imports.removeAll { $0.id == work.id }
        } catch is CancellationError {
            change(work.id, source, format) { $0.stage = .paused }
        } catch {
            change(work.id, source, format) { $0.stage = .failed(Problem(error)) }
        }
    }

    private func advance(_ id: String, _ progress: ImportProgress) {
        guard let i = imports.firstIndex(where: { $0.id == id }), tasks[id] != nil else { return }
        imports[i].doneBytes = max(progress.doneBytes, imports[i].doneBytes)
        imports[i].totalBytes = progress.totalBytes
    }

    private func change(_ id: String, _ source: URL, _ format: Package.Format, _ body: (inout ImportRow) -> Void) {
        if !imports.contains(where: { $0.id == id }) {
            imports.append(
                ImportRow(id: id, source: source, format: format, stage: .running, doneBytes: 0, totalBytes: nil))
        }
        guard let i = imports.firstIndex(where: { $0.id == id }) else { return }
        body(&imports[i])
    }
}

extension URL {
    /// Folders that the user picked are outside of the app's sandbox.
    fileprivate func startAccessing() -> Bool {
        #if canImport(ObjectiveC)
            startAccessingSecurityScopedResource()
        #else
            false
        #endif
    }

    fileprivate func stopAccessing() {
        #if canImport(ObjectiveC)
            stopAccessingSecurityScopedResource()
        #endif
    }
}
