import Foundation
import TinyQMoECore
import XCTest

/// The vectors that every language reads (tests/golden/README.md).
enum Golden {
    static let folder = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().appendingPathComponent("../../../../tests/golden").standardizedFileURL

    /// Lines of a table, each as values by column.
    static func table(_ name: String) throws -> [[String: String]] {
        let text = try String(contentsOf: folder.appendingPathComponent(name), encoding: .utf8)
        var lines = text.split(separator: "\n").map { $0.components(separatedBy: "\t") }
        let columns = lines.removeFirst()
        return lines.map { Dictionary(uniqueKeysWithValues: zip(columns, $0)) }
    }

    static func data(_ path: String) throws -> Data { try Data(contentsOf: folder.appendingPathComponent(path)) }

    static func values<Value>(_ path: String, as type: Value.Type) throws -> [Value] {
        try data(path).withUnsafeBytes { Array($0.bindMemory(to: type)) }
    }

    static func crc32(_ values: [Float]) -> String {
        let crc = values.withUnsafeBytes { tinyqmoe_crc32(0, $0.baseAddress, UInt64($0.count)) }
        return String(format: "%08x", crc)
    }
}

/// A blob's rows and columns, and its levels.
struct OpenedBlob {
    let rows: Int
    let cols: Int
    let levels: [Int8]

    init(_ blob: Data) throws {
        (rows, cols, levels) = try blob.withUnsafeBytes { bytes in
            var tensor: OpaquePointer?
            XCTAssertEqual(tinyqmoe_open(bytes.baseAddress, UInt64(bytes.count), 0, &tensor), TINYQMOE_OK)
            let opened = try XCTUnwrap(tensor)
            defer { tinyqmoe_close(opened) }
            var info = tinyqmoe_info()
            tinyqmoe_get_info(opened, &info)
            var levels = [Int8](repeating: 0, count: Int(info.rows * info.cols))
            XCTAssertEqual(tinyqmoe_decode_rows(opened, 0, info.rows, TINYQMOE_ISA_AUTO, &levels), TINYQMOE_OK)
            return (Int(info.rows), Int(info.cols), levels)
        }
    }
}
