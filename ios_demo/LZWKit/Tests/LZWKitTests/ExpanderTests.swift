import Foundation
import XCTest

@testable import LZWKit

/// The ML program is rebuilt byte for byte as `tinyqmoe expand` does.
final class ExpanderTests: XCTestCase {
    func testTheSameBytesAsTinyqmoeExpand() throws {
        for name in ["demo", "ternary"] {
            let bundle = try ModelBundle.open(Paths.made(name))
            let target = try temporaryFolder(self).appendingPathComponent("model.mlpackage")
            try Expander(bundle).run(to: target)
            try assertSameFiles(target, Paths.made("\(name).mlpackage"))
            try Expander(bundle).run(to: target)  // in the place of itself
            try assertSameFiles(target, Paths.made("\(name).mlpackage"))
        }
    }

    func testItGoesOnAfterAKill() throws {
        let bundle = try ModelBundle.open(Paths.made("demo"))
        let target = try temporaryFolder(self).appendingPathComponent("model.mlpackage")
        let work = target.deletingLastPathComponent().appendingPathComponent(".model.mlpackage.partial")
        // As a kill leaves it: a weight file that ends within a piece.
        try Expander(bundle).run(to: target)
        try FileManager.default.createDirectory(at: work, withIntermediateDirectories: true)
        let partial = work.appendingPathComponent("new")
        try FileManager.default.moveItem(at: target, to: partial)
        let weights = partial.appendingPathComponent("Data/com.apple.CoreML/weights/weight.bin")
        let whole = try Data(contentsOf: weights)
        try whole.prefix(whole.count / 2 + 3).write(to: weights)
        try Expander(bundle).run(to: target)
        try assertSameFiles(target, Paths.made("demo.mlpackage"))
        XCTAssertFalse(FileManager.default.fileExists(atPath: work.path))
    }

    func testWhatAKillLeftIsNotTrusted() throws {
        let bundle = try ModelBundle.open(Paths.made("demo"))
        let target = try temporaryFolder(self).appendingPathComponent("model.mlpackage")
        let weights = target.deletingLastPathComponent().appendingPathComponent(
            ".model.mlpackage.partial/new/Data/com.apple.CoreML/weights/weight.bin")
        try FileManager.default.createDirectory(at: weights.deletingLastPathComponent(), withIntermediateDirectories: true)
        try Data(count: 300_000).write(to: weights)
        XCTAssertEqual(bundleError { try Expander(bundle).run(to: target) }?.kind, .damaged)
        try Expander(bundle).run(to: target)
        try assertSameFiles(target, Paths.made("demo.mlpackage"))
    }

    func testACancelledTaskEndsIt() async throws {
        let bundle = try ModelBundle.open(Paths.made("demo"))
        let target = try temporaryFolder(self).appendingPathComponent("model.mlpackage")
        let task = Task {
            withUnsafeCurrentTask { $0?.cancel() }
            try Expander(bundle).run(to: target)
        }
        do {
            try await task.value
            XCTFail("it went on")
        } catch { XCTAssertTrue(error is CancellationError, "\(error)") }
        XCTAssertFalse(FileManager.default.fileExists(atPath: target.path))
    }

    func testBundlesOfAStranger() throws {
        let folder = try temporaryFolder(self).appendingPathComponent("model"), files = FileManager.default
        try files.copyItem(at: Paths.made("demo"), to: folder)
        let bundle = try ModelBundle.open(folder)
        let target = folder.deletingLastPathComponent().appendingPathComponent("model.mlpackage")
        func kind() -> BundleError.Kind? { bundleError { try Expander(bundle).run(to: target) }?.kind }

        let link = folder.appendingPathComponent("model.template.mlpackage/link")
        try files.createSymbolicLink(at: link, withDestinationURL: folder)
        XCTAssertEqual(kind(), .damaged)
        try files.removeItem(at: link)
        try files.createDirectory(at: target, withIntermediateDirectories: true)
        XCTAssertEqual(kind(), .notSupported)  // something else is there
        try files.removeItem(at: target)
        let coded = folder.appendingPathComponent("model.weights.tqlz")
        let whole = try Data(contentsOf: coded)
        try whole.prefix(1000).write(to: coded)
        XCTAssertEqual(kind(), .damaged)
        try files.removeItem(at: coded)
        XCTAssertEqual(kind(), .missing)
        let recipe = folder.appendingPathComponent("expand.json")
        let outside = try String(contentsOf: recipe, encoding: .utf8).replacingOccurrences(
            of: "Data/com.apple.CoreML", with: "../outside")
        try Data(outside.utf8).write(to: recipe)
        XCTAssertEqual(bundleError { _ = try Expander(bundle) }?.kind, .notValid)
    }

    func testPlainForms() {
        XCTAssertEqual(PieceExpansion.packed([-1, 0, 1, -1, 1], .uint2), [0b00_10_01_00, 0b10])
        XCTAssertEqual(PieceExpansion.packed([-8, 7, -1], .int4), [0x78, 0x0F])
        XCTAssertEqual(PieceExpansion.packed([-128, 127], .int8), [128, 127])
    }
}
