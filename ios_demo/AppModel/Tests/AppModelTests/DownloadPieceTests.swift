import Foundation
import LZWKit
import XCTest

@testable import AppModel

final class DownloadPieceTests: XCTestCase {
    private var root = URL(fileURLWithPath: "/")
    private var partial: URL { root.appendingPathComponent("models/.m.partial/files/model.pte.unfinished") }

    override func setUpWithError() throws {
        root = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(
            at: partial.deletingLastPathComponent(), withIntermediateDirectories: true)
    }

    override func tearDown() { try? FileManager.default.removeItem(at: root) }

    func testTheRestOfAFileIsAppended() throws {
        XCTAssertEqual(try add("defg", to: "abc", offset: 3, status: 206), "abcdefg")
    }

    func testAServerThatSendsAllBeginsAnew() throws {
        XCTAssertEqual(try add("abcdefg", to: "abc", offset: 3, status: 200), "abcdefg")
        XCTAssertEqual(try add("abcdefg", to: "", offset: 0, status: 200), "abcdefg")
    }

    func testAnErrorOfTheServerAddsNothing() throws {
        for status in [0, 404, 416, 500] {
            XCTAssertThrowsError(try add("<html>", to: "abc", offset: 3, status: status)) {
                XCTAssertEqual(($0 as? BundleError)?.kind, .network)
            }
            XCTAssertEqual(try String(contentsOf: partial, encoding: .utf8), "abc")
        }
    }

    func testAFileThatBecameShorterIsNotFilledWithZeros() throws {
        XCTAssertThrowsError(try add("defg", to: "ab", offset: 3, status: 206))
        XCTAssertEqual(try String(contentsOf: partial, encoding: .utf8), "ab")
    }

    func testTheDescriptionFindsThePlaceInAnotherContainer() throws {
        let piece = DownloadPiece(of: partial, under: root, offset: 3)
        let moved = root.appendingPathComponent("moved")
        let expected = DownloadPiece(
            of: moved.appendingPathComponent("models/.m.partial/files/model.pte.unfinished"), under: moved, offset: 3)
        XCTAssertEqual(DownloadPiece(piece.description, under: moved), expected)
        for bad in [nil, "", "3", "x y", "-1 y", "3 ../y"] { XCTAssertNil(DownloadPiece(bad, under: root)) }
    }

    func testResumeDataIsUsedOnce() throws {
        let piece = DownloadPiece(of: partial, under: root, offset: 3)
        XCTAssertNil(piece.takeResumeData())
        piece.keep(resumeData: Data([1, 2]))
        XCTAssertEqual(piece.takeResumeData(), Data([1, 2]))
        XCTAssertNil(piece.takeResumeData())
    }

    private func add(_ text: String, to there: String, offset: Int, status: Int) throws -> String {
        try Data(there.utf8).write(to: partial)
        let downloaded = root.appendingPathComponent("downloaded")
        try Data(text.utf8).write(to: downloaded)
        defer { XCTAssertFalse(FileManager.default.fileExists(atPath: downloaded.path)) }
        try DownloadPiece(of: partial, under: root, offset: offset).add(downloaded, status: status)
        return try String(contentsOf: partial, encoding: .utf8)
    }
}
