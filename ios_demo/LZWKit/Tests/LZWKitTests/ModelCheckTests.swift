import Foundation
import XCTest

@testable import LZWKit

/// "Check this model" says what `tinyqmoe parity` says.
final class ModelCheckTests: XCTestCase {
    func testVerdictsAreThoseOfParity() async throws {
        let bundle = try ModelBundle.open(Paths.made("demo"))
        let session = try await Session.open(bundle)
        let steps = Steps()
        let report = try await ModelCheck(bundle, device: "test").run(on: session) { steps.add($0, $1) }
        let parity = try json(Paths.made("parity.json"))["packages"]!.array![0]["checks"]!.array!
        let expected = parity.filter { !["levels", "scales"].contains($0["verdict"]!.string!) }
        XCTAssertEqual(report.checks.count, expected.count)
        for (check, other) in zip(report.checks, expected) {
            XCTAssertEqual(check.verdict.rawValue, other["verdict"]!.string!)
            XCTAssertEqual(check.what, other["what"]!.string!)
            XCTAssertEqual(check.passed, other["passed"]!.bool!)
            XCTAssertEqual(check.positions, other["positions"]!.int!)
            for (own, name) in [(check.klMedian, "kl_median"), (check.klWorst, "kl_worst")] {
                XCTAssertEqual(own ?? 0, other[name]!.double ?? 0, accuracy: 1e-12, check.what)
            }
            for (own, name) in [(check.sqnrMedian, "sqnr_db_median"), (check.sqnrWorst, "sqnr_db_worst")] {
                XCTAssertEqual(own ?? 0, other[name]!.double ?? 0, accuracy: 1e-6, check.what)
            }
        }
        XCTAssertTrue(report.passed && report.sameBits)
        XCTAssertEqual(steps.last.0, steps.last.1)
        XCTAssertTrue(report.text.contains("same bits"))
        let golden = try golden("demo.json")["reference"]!.array!.map { $0["sha256"]!.string! }
        let bits = SHA256Digest.of(digests: golden)
        XCTAssertEqual(report.bits, bits)
        XCTAssertTrue(report.text.contains(bits))
        XCTAssertEqual(try JSONDecoder().decode(CheckReport.self, from: report.json()).checks.count, report.checks.count)
    }

    private final class Steps: @unchecked Sendable {
        private(set) var last = (0, 1)
        func add(_ done: Int, _ total: Int) { last = (done, total) }
    }

    func testAnotherModelFails() throws {
        // The same network from other weights: the ternary export answers for the int8 one.
        let bundle = try ModelBundle.open(Paths.made("demo"))
        let engine = try NativeEngine(ModelBundle.open(Paths.made("ternary")))
        let report = try ModelCheck(bundle, device: "test").run(engine) { _, _ in }
        XCTAssertFalse(report.passed || report.sameBits)
        let native = try ModelCheck(bundle, device: "test").run(NativeEngine(bundle)) { _, _ in }
        XCTAssertNotEqual(report.bits, native.bits)
        XCTAssertTrue(report.checks.filter { $0.verdict == .logits }.allSatisfy { !$0.passed })
        XCTAssertTrue(report.text.contains("FAILED"))
    }

    func testACancelEndsIt() async throws {
        let bundle = try ModelBundle.open(Paths.made("demo"))
        let session = try await Session.open(bundle), check = try ModelCheck(bundle, device: "test")
        let task = Task { try await check.run(on: session) }
        task.cancel()
        do {
            _ = try await task.value
            XCTFail("it went on")
        } catch { XCTAssertTrue(error is CancellationError, "\(error)") }
        let state = await session.engineState()
        XCTAssertEqual(state.context, 128)
    }

    func testADamagedReferenceIsRefused() throws {
        let folder = try temporaryFolder(self).appendingPathComponent("model")
        try FileManager.default.copyItem(at: Paths.made("demo"), to: folder)
        let bundle = try ModelBundle.open(folder), file = folder.appendingPathComponent(Manifest.referenceName)
        let whole = try Data(contentsOf: file), engine = try NativeEngine(bundle)
        var huge = whole
        huge.replaceSubrange(0..<8, with: [UInt8](repeating: 255, count: 8))
        for damaged in [Data(), whole.prefix(100), whole.dropLast(10_000), huge] {
            try damaged.write(to: file)
            let error = bundleError { _ = try ModelCheck(bundle, device: "test").run(engine) { _, _ in } }
            XCTAssertEqual(error?.kind, .damaged)
        }
    }
}
