import Foundation
import XCTest

@testable import LZWKit

/// A bundle of any model with all packages: LZW_REAL. With it, build in release mode.
final class RealModelTests: XCTestCase {
    private func bundle() throws -> ModelBundle {
        let folder = ProcessInfo.processInfo.environment["LZW_REAL"] ?? ""
        if folder.isEmpty { throw XCTSkip("LZW_REAL is not set") }
        return try ModelBundle.open(URL(fileURLWithPath: folder))
    }

    func testItIsWholeAndAnswersWithTheSameBits() async throws {
        let bundle = try bundle()
        try bundle.verify(.pte, hashed: true)
        let session = try await Session.open(bundle)
        let report = try await ModelCheck(bundle, device: "test").run(on: session)
        XCTAssertTrue(report.passed && report.sameBits, report.text)
        var text = ""
        for try await reply in session.reply(to: [Message(.user, "What is the capital of France?")], maxNewTokens: 24) {
            if case .text(let piece, _) = reply { text += piece }
            if case .done(_, let stats) = reply { print("answer: \(text)\n\(stats)") }
        }
        XCTAssertFalse(text.isEmpty)
    }

    func testItExpands() throws {
        let bundle = try bundle()
        let target = try temporaryFolder(self).appendingPathComponent("model.mlpackage")
        try Expander(bundle).run(to: target)
        for entry in bundle.manifest.expanded {
            let path = entry.path.split(separator: "/").dropFirst().joined(separator: "/")
            XCTAssertEqual(try SHA256Digest.of(target.appendingPathComponent(path)), entry.sha256, entry.path)
        }
    }
}
