import Foundation
import LZWKit
import XCTest

@testable import AppModel

/// A folder of a test, which goes with it, with a store that has models of the golden manifest.
final class Fixture {
    let folder: URL
    let folders: AppFolders
    let store: BundleStore

    init() throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        folders = AppFolders(
            support: folder.appendingPathComponent("support"), caches: folder.appendingPathComponent("caches"))
        store = try BundleStore(folder: folders.models)
    }

    deinit { try? FileManager.default.removeItem(at: folder) }

    /// A model whose manifest is the golden one, and whose files have the sizes that it names.
    func addModel(_ id: String, without missing: String? = nil) throws {
        let bundle = store.folder(of: id)
        try FileManager.default.createDirectory(at: bundle, withIntermediateDirectories: true)
        let golden = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .appendingPathComponent("../../../../tests/golden/manifest/good.json").standardizedFileURL
        let data = try Data(contentsOf: golden)
        try data.write(to: bundle.appendingPathComponent(Manifest.fileName))
        for file in try Manifest(data: data).files where file.path != missing {
            try Data(count: file.byteCount).write(to: bundle.appendingPathComponent(file.path))
        }
    }

    func manifest() throws -> Manifest {
        try addModel("manifest")
        defer { try? store.delete("manifest") }
        return try ModelBundle.open(store.folder(of: "manifest")).manifest
    }
}

/// A model that says what a test tells it, and notes what it was asked.
final class Script: @unchecked Sendable {
    private let lock = NSLock()
    private var replies: [[Reply]] = []
    private var failure: (any Error)?
    private var holds = false
    private var _asked: [[Message]] = []
    private var _seeds: [UInt64] = []
    private var _calls: [String] = []

    var asked: [[Message]] { lock.withLock { _asked } }
    var seeds: [UInt64] { lock.withLock { _seeds } }
    var calls: [String] { lock.withLock { _calls } }

    /// The replies to the next question; with `holds` the answer does not end by itself.
    func says(_ replies: [Reply], holds: Bool = false, then failure: (any Error)? = nil) {
        lock.withLock {
            self.replies.append(replies)
            (self.holds, self.failure) = (holds, failure)
        }
    }

    func note(_ call: String) { lock.withLock { _calls.append(call) } }

    func model(_ manifest: Manifest, takesSystemPrompt: Bool = true) -> LoadedModel {
        LoadedModel(
            manifest: manifest, takesSystemPrompt: takesSystemPrompt,
            reply: { messages, sampling, _ in self.reply(messages, sampling.seed) },
            setPause: { self.note("pause \($0)") }, close: { self.note("close") },
            check: { progress in
                progress(1, 2)
                return try self.report()
            })
    }

    private func reply(_ messages: [Message], _ seed: UInt64) -> LoadedModel.Replies {
        let (now, holds, failure) = lock.withLock {
            _asked.append(messages)
            _seeds.append(seed)
            return (replies.isEmpty ? [] : replies.removeFirst(), self.holds, self.failure)
        }
        return LoadedModel.Replies { continuation in
            for reply in now { continuation.yield(reply) }
            if !holds { continuation.finish(throwing: failure) }
        }
    }

    private func report() throws -> CheckReport {
        if let failure = lock.withLock({ failure }) { throw failure }
        let json = #"{"model": "m", "device": "d", "checks": []}"#
        return try JSONDecoder().decode(CheckReport.self, from: Data(json.utf8))
    }
}

/// All parts over a fixture and a script.
@MainActor
struct Parts {
    let fixture: Fixture
    let script = Script()
    let settings: SettingsModel
    let host: ModelHost
    let chat: ChatModel

    init(
        _ fixture: Fixture? = nil, available: Int = 4_000_000_000, takesSystemPrompt: Bool = true,
        openFails: (any Error)? = nil
    ) throws {
        let fixture = try fixture ?? Fixture()
        self.fixture = fixture
        settings = SettingsModel(file: SettingsFile(fixture.folders.settings))
        let script = script
        host = ModelHost(
            store: fixture.store, guardFile: LoadGuard(file: fixture.folders.loadFlag),
            availableBytes: { available },
            open: { bundle, format in
                script.note("open \(format.rawValue)")
                if let openFails { throw openFails }
                return script.model(bundle.manifest, takesSystemPrompt: takesSystemPrompt)
            })
        chat = ChatModel(
            conversations: try Conversations(folder: fixture.folders.conversations), settings: settings, host: host)
    }

    func load(_ id: String = "m") async throws {
        try fixture.addModel(id)
        host.load(id)
        await host.settle()
    }
}

func text(_ text: String) -> Reply { .text(text, SessionStats()) }
func done(_ ending: Ending = .end) -> Reply { .done(ending, SessionStats()) }

/// The demo model as `make-bundles.sh` exports it.
func madeBundle() throws -> URL {
    let path = ProcessInfo.processInfo.environment["LZW_MADE"]
    let made = try XCTUnwrap(path, "LZW_MADE names no folder: run check_app.sh")
    return URL(fileURLWithPath: made).appendingPathComponent("demo")
}
