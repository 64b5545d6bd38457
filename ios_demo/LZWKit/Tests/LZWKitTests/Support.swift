import Foundation
import XCTest

@testable import LZWKit

/// Where the tests find what they compare with.
enum Paths {
    /// tests/golden of the repository.
    static let golden = repository.appendingPathComponent("tests/golden")
    private static let repository = (0..<5).reduce(URL(fileURLWithPath: #filePath)) { url, _ in url.deletingLastPathComponent() }

    /// Of ios_demo/check.sh: bundles of the demo model, and what `tinyqmoe` says of them. Skips the test without them.
    static func made(_ name: String) throws -> URL {
        guard let folder = ProcessInfo.processInfo.environment["LZW_MADE"] else {
            throw XCTSkip("LZW_MADE is not set: run ios_demo/check.sh")
        }
        return URL(fileURLWithPath: folder).appendingPathComponent(name)
    }
}

/// Rows of a table of tests/golden, by the names of its columns.
func table(_ name: String) throws -> [[String: String]] {
    let text = try String(contentsOf: Paths.golden.appendingPathComponent(name), encoding: .utf8)
    let lines = text.split(separator: "\n").map { $0.split(separator: "\t").map(String.init) }
    return lines.dropFirst().map { Dictionary(uniqueKeysWithValues: zip(lines[0], $0)) }
}

func golden(_ name: String) throws -> JSON {
    try JSON.parse(Data(contentsOf: Paths.golden.appendingPathComponent(name)))
}

func json(_ url: URL) throws -> JSON { try JSON.parse(Data(contentsOf: url)) }

extension JSON {
    var ids: [Int32] { array!.map { Int32($0.int!) } }
}

/// A folder that goes when the test ends.
func temporaryFolder(_ test: XCTestCase) throws -> URL {
    let url = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
    test.addTeardownBlock { try? FileManager.default.removeItem(at: url) }
    return url
}

/// The error of a call as a BundleError; fails the test if it is none.
func bundleError(_ body: () throws -> Void, file: StaticString = #filePath, line: UInt = #line) -> BundleError? {
    do { try body() } catch {
        if let error = error as? BundleError { return error }
        XCTFail("\(error) is no BundleError", file: file, line: line)
        return nil
    }
    XCTFail("no error", file: file, line: line)
    return nil
}

func asyncBundleError(
    file: StaticString = #filePath, line: UInt = #line, _ body: () async throws -> Void
) async -> BundleError? {
    do { try await body() } catch {
        if let error = error as? BundleError { return error }
        XCTFail("\(error) is no BundleError", file: file, line: line)
        return nil
    }
    XCTFail("no error", file: file, line: line)
    return nil
}

func assertSameFiles(_ a: URL, _ b: URL, file: StaticString = #filePath, line: UInt = #line) throws {
    let files = FileManager.default
    let paths = try files.subpathsOfDirectory(atPath: a.path).sorted()
    XCTAssertEqual(paths, try files.subpathsOfDirectory(atPath: b.path).sorted(), file: file, line: line)
    for path in paths {
        let same = files.contentsEqual(
            atPath: a.appendingPathComponent(path).path, andPath: b.appendingPathComponent(path).path)
        XCTAssertTrue(same, path, file: file, line: line)
    }
}
