import Foundation
import LZWKit
import XCTest

@testable import LZWCoreML

/// What both engines do without Core ML: cutting tokens into calls, and counting positions.
final class EngineTests: XCTestCase {
    func testCallsOfTheNetworkAreAsLongAsTheyMayBe() {
        XCTAssertEqual(CallPlan.network(300, most: 128).map(\.tokens), [0..<128, 128..<256, 256..<300])
        XCTAssertEqual(CallPlan.network(1, most: 128).map(\.tokens), [0..<1])
    }

    func testAPrefillMustNotPassTheContext() {
        for (count, position, size, context) in [
            (300, 0, 128, 512), (300, 212, 128, 512), (5, 384, 128, 512), (5, 385, 128, 512), (1, 0, 128, 512),
            (64, 0, 64, 64), (63, 1, 64, 64),
        ] {
            let calls = CallPlan.program(count, position: position, size: size, context: context)
            XCTAssertEqual(calls.flatMap { Array($0.tokens) }, Array(0..<count))
            for call in calls {
                let end = position + call.tokens.lowerBound + (call.isPrefill ? size : 1)
                XCTAssertLessThanOrEqual(end, context)
                XCTAssertLessThanOrEqual(call.tokens.count, call.isPrefill ? size : 1)
            }
        }
        XCTAssertEqual(
            CallPlan.program(130, position: 0, size: 128, context: 512).map(\.isPrefill), [true, true])
        XCTAssertEqual(
            CallPlan.program(3, position: 510, size: 2, context: 512).map(\.isPrefill), [true, false])
    }

    func testPadding() {
        XCTAssertEqual(CallPlan.padded([5, 6, 7][1...], to: 4), [6, 7, 0, 0])
        XCTAssertEqual(CallPlan.padded([5, 6, 7][1...], to: 1), [6, 7])
    }

    func testTheCacheRefusesWhatHasNoRoom() throws {
        var fill = CacheFill(context: 8, vocab: 10)
        try fill.require([0, 9, 3])
        fill.add(6, took: .milliseconds(1500))
        XCTAssertThrowsError(try fill.require([1, 1, 1])) { XCTAssertEqual(($0 as? BundleError)?.kind, .contextFull) }
        XCTAssertThrowsError(try fill.require([])) { XCTAssertEqual(($0 as? BundleError)?.kind, .contextFull) }
        XCTAssertThrowsError(try fill.require([10])) { XCTAssertEqual(($0 as? BundleError)?.kind, .notValid) }
        XCTAssertThrowsError(try fill.require([-1])) { XCTAssertEqual(($0 as? BundleError)?.kind, .notValid) }
        XCTAssertThrowsError(try fill.trim(to: 7))
        try fill.trim(to: 2)
        let state = fill.state(kvCacheBytes: 40, mappedBytes: 50)
        XCTAssertEqual(
            [state.positions, state.context, state.vocab, state.kvCacheBytes, state.mappedBytes, state.tokensFed],
            [2, 8, 10, 40, 50, 6])
        XCTAssertEqual(state.feedSeconds, 1.5, accuracy: 1e-9)
    }

    func testTheBestLogitIsTheFirstOfEquals() throws {
        XCTAssertEqual(try best(of: [1, 3, 3, -2]), 1)
        for bad: [Float] in [[], [1, .nan], [.infinity, 0]] {
            XCTAssertThrowsError(try best(of: bad)) { XCTAssertEqual(($0 as? BundleError)?.kind, .damaged) }
        }
    }
}

/// The compiled form of a package is made once, whole, for one manifest.
final class CompiledModelsTests: XCTestCase {
    private var folder = URL(fileURLWithPath: "/")

    override func setUpWithError() throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    }

    override func tearDown() { try? FileManager.default.removeItem(at: folder) }

    func testItIsCompiledOnce() async throws {
        let compiled = CompiledModels(folder: folder.appendingPathComponent("compiled"))
        let calls = Calls()
        for _ in 0..<2 {
            let model = try await compiled.model(
                digest: "aa", of: .customOp, package: { calls.packages += 1; return self.folder },
                compile: { _ in try self.makeCompiled(calls) })
            XCTAssertEqual(try String(contentsOf: model.appendingPathComponent("model"), encoding: .utf8), "compiled")
        }
        XCTAssertEqual([calls.packages, calls.compiles], [1, 1])
        _ = try await compiled.model(
            digest: "bb", of: .customOp, package: { self.folder }, compile: { _ in try self.makeCompiled(calls) })
        XCTAssertEqual(calls.compiles, 2)
    }

    func testAFailureLeavesNothing() async throws {
        struct Failed: Error {}
        let compiled = CompiledModels(folder: folder.appendingPathComponent("compiled"))
        do {
            _ = try await compiled.model(
                digest: "aa", of: .mlprogram, package: { self.folder }, compile: { _ in throw Failed() })
            XCTFail("it must throw")
        } catch is Failed {}
        XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: folder.path + "/compiled"), [])
    }

    func testFormsOfOtherModelsAreRemoved() async throws {
        let compiled = CompiledModels(folder: folder.appendingPathComponent("compiled"))
        for digest in ["aa", "bb"] {
            _ = try await compiled.model(
                digest: digest, of: .customOp, package: { self.folder },
                compile: { _ in try self.makeCompiled(Calls()) })
        }
        compiled.removeAll(but: ["bb"])
        XCTAssertEqual(
            try FileManager.default.contentsOfDirectory(atPath: folder.path + "/compiled"), ["bb-custom-op.mlmodelc"])
    }

    private func makeCompiled(_ calls: Calls) throws -> URL {
        calls.compiles += 1
        let made = folder.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: made, withIntermediateDirectories: true)
        try Data("compiled".utf8).write(to: made.appendingPathComponent("model"))
        return made
    }

    private final class Calls: @unchecked Sendable {
        var packages = 0
        var compiles = 0
    }
}
