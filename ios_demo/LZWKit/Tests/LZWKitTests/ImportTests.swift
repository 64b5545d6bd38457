import Foundation
import XCTest

@testable import LZWKit

/// Imports from a folder, and from a server of this machine that does wrong things when it is asked to.
final class ImportTests: XCTestCase {
    private func store() throws -> BundleStore {
        try BundleStore(folder: temporaryFolder(self).appendingPathComponent("models"))
    }

    /// The port of a server of the demo bundle, which ends with the test.
    private func server() throws -> String {
        let process = Process(), input = Pipe(), output = Pipe()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        let script = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("server.py")
        process.arguments = ["python3", script.path, try Paths.made("demo").path]
        (process.standardInput, process.standardOutput) = (input, output)
        try process.run()
        addTeardownBlock {
            try? input.fileHandleForWriting.close()
            kill(process.processIdentifier, SIGKILL)  // SIGTERM may be blocked
        }
        let port = String(decoding: output.fileHandleForReading.availableData, as: UTF8.self).trimmed
        return "http://127.0.0.1:\(port)"
    }

    private func assertComplete(_ bundle: ModelBundle, _ store: BundleStore) throws {
        XCTAssertNoThrow(try bundle.verify(.pte, hashed: true))
        let wanted = try bundle.manifest.files(for: .pte).map(\.path) + [Manifest.fileName]
        let there = try FileManager.default.subpathsOfDirectory(atPath: bundle.folder.path)
        XCTAssertEqual(Set(there), Set(wanted))
        XCTAssertEqual(store.partialImports(), [])
        let names = try FileManager.default.contentsOfDirectory(atPath: store.folder.path)
        XCTAssertEqual(names, [bundle.folder.lastPathComponent])
    }

    func testFromAFolder() async throws {
        let store = try store(), progress = Progress()
        let bundle = try await BundleImport(from: Paths.made("demo"), to: store).run { progress.add($0) }
        try assertComplete(bundle, store)
        XCTAssertEqual(progress.last?.doneBytes, progress.last?.totalBytes)
        let models = store.models()
        XCTAssertEqual(models.map(\.id), ["demo"])
        XCTAssertGreaterThan(models[0].byteCount, progress.last!.totalBytes)
        try store.delete("demo")
        XCTAssertEqual(store.models().count, 0)
    }

    private final class Progress: @unchecked Sendable {
        private let lock = NSLock()
        private var all: [ImportProgress] = []
        var last: ImportProgress? { lock.withLock { all.last } }
        var first: ImportProgress? { lock.withLock { all.first } }
        func add(_ progress: ImportProgress) { lock.withLock { all.append(progress) } }
    }

    func testFromAnAddress() async throws {
        let store = try store(), address = URL(string: try server() + "/whole/demo")!
        let bundle = try await BundleImport(from: address, to: store).run()
        try assertComplete(bundle, store)
        let session = try await Session.open(bundle)
        let state = await session.engineState()
        XCTAssertEqual(state.context, bundle.manifest.interface.context)
    }

    func testItGoesOnWhereItBroke() async throws {
        let server = try server()
        for second in ["/whole/demo", "/norange/demo"] {
            let store = try store()
            let broken = BundleImport(from: URL(string: server + "/short/demo")!, to: store)
            let error = await asyncBundleError { _ = try await broken.run() }
            XCTAssertEqual(error?.kind, .network)
            let partial = try XCTUnwrap(store.partialImports().first)
            XCTAssertEqual(partial.id, "demo")
            XCTAssertTrue(partial.doneBytes > 0 && partial.doneBytes < partial.totalBytes!)
            XCTAssertEqual(store.models().count, 0)
            let progress = Progress()
            let again = BundleImport(from: URL(string: server + second)!, to: store)
            try assertComplete(try await again.run { progress.add($0) }, store)
            // What came is not fetched again, where the server can begin elsewhere.
            let program = ModelBundleFacts.programBytes(try Paths.made("demo"))
            XCTAssertEqual(progress.first!.doneBytes > program / 2, second == "/whole/demo")
        }
    }

    private enum ModelBundleFacts {
        static func programBytes(_ folder: URL) -> Int {
            let file = folder.appendingPathComponent("model.pte").path
            return ((try? FileManager.default.attributesOfItem(atPath: file))?[.size] as? NSNumber)?.intValue ?? 0
        }
    }

    func testAWrongSHA256IsRefused() async throws {
        let server = try server(), store = try store()
        let error = await asyncBundleError {
            _ = try await BundleImport(from: URL(string: server + "/flipped/demo")!, to: store).run()
        }
        XCTAssertEqual(error?.kind, .damaged)
        XCTAssertTrue(error?.what.contains("model.pte") ?? false)
        XCTAssertEqual(store.models().count, 0)
        let bundle = try await BundleImport(from: URL(string: server + "/whole/demo")!, to: store).run()
        try assertComplete(bundle, store)
        try store.delete("demo")
    }

    func testAPauseKeepsWhatCame() async throws {
        let store = try store(), source = try Paths.made("demo")
        let task = Task {
            try await BundleImport(from: source, to: store).run { _ in withUnsafeCurrentTask { $0?.cancel() } }
        }
        do {
            _ = try await task.value
            XCTFail("it went on")
        } catch { XCTAssertTrue(error is CancellationError, "\(error)") }
        XCTAssertEqual(store.partialImports().map(\.id), ["demo"])
        try assertComplete(try await BundleImport(from: source, to: store).run(), store)
    }

    func testNoSuchAddress() async throws {
        let server = try server(), store = try store()
        for (address, word) in [(server + "/whole/demo/none", "404"), ("http://127.0.0.1:9/demo", "manifest.json")] {
            let error = await asyncBundleError { _ = try await BundleImport(from: URL(string: address)!, to: store).run() }
            XCTAssertEqual(error?.kind, .network)
            XCTAssertTrue(error?.what.contains(word) ?? false, error?.what ?? "")
        }
        let nowhere = try temporaryFolder(self)
        let error = await asyncBundleError { _ = try await BundleImport(from: nowhere, to: store).run() }
        XCTAssertEqual(error?.kind, .missing)
    }

    func testNamesOfFolders() {
        let names = ["https://a.example/models/Smol LM2-135M/": "SmolLM2-135M", "https://a.example/": "a.example"]
        for (address, id) in names {
            let url = URL(string: address.replacingOccurrences(of: " ", with: "%20"))!
            XCTAssertEqual(BundleImport.id(of: url), id)
        }
        XCTAssertEqual(BundleImport.id(of: URL(fileURLWithPath: "/a/..b")), "b")
    }

    func testADamagedModelIsListedWithItsProblem() throws {
        let store = try store()
        try FileManager.default.createDirectory(at: store.folder(of: "x"), withIntermediateDirectories: true)
        guard case .failure(let error) = store.models()[0].bundle else { return XCTFail("it opened") }
        XCTAssertEqual(error.kind, .notABundle)
    }
}
