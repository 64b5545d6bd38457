import Foundation
import XCTest

@testable import LZWCoreML

/// What is wrong with a custom layer is said in words, and nothing is computed.
final class LayerErrorTests: XCTestCase {
    private let good: [String: Any] = [
        "version": 3, "name": "w", "rows": 4, "cols": 3, "group_size": 3, "scale_type": "ue6m10",
        "int16_activations": true,
    ]

    func testGoodParametersAreRead() throws {
        let read = try LayerParameters(good, of: .linear)
        XCTAssertEqual([read.rows, read.cols, read.groupSize], [4, 3, 3])
        XCTAssertEqual(read.weights, .ownData)
        XCTAssertTrue(read.int16Activations)
    }

    func testEverythingThatIsWrongIsSaidAtOnce() {
        var bad = good
        bad["rows"] = "four"
        bad["cols"] = nil
        bad["version"] = 2
        bad["colour"] = 1
        bad["scale_type"] = "half"
        for part in ["scale_type \"half\"", "rows is no Int", "cols is missing", "version is 2", "colour is unknown", "update the app"] {
            assertFails(part) { _ = try LayerParameters(bad, of: .linear) }
        }
    }

    func testAnEmbeddingHasNoActivations() {
        assertFails("int16_activations is unknown") { _ = try LayerParameters(self.good, of: .embedding) }
    }

    func testAPlaceOfNoBytes() {
        let place: [String: Any] = [
            "file": "f", "blob_offset": -1, "blob_bytes": 5, "scales_offset": Int.max, "scales_bytes": 5,
        ]
        let given = good.merging(place) { $1 }
        assertFails("5 bytes at -1 are no place of the blob") { _ = try LayerParameters(given, of: .linear) }
        assertFails("are no place of the scales") { _ = try LayerParameters(given, of: .linear) }
    }

    func testALayerOutsideOfALoad() {
        assertFails("outside of ModelScope.loading") { _ = try CodedLayer(self.good, of: .linear) }
    }

    func testFilesOutsideOfTheBundleAreRefused() {
        for file in ["../f", "/etc/hostname", "a/../../f", "a\\f", ""] {
            var given = good
            for (name, value) in ["blob_offset": 0, "blob_bytes": 1, "scales_offset": 1, "scales_bytes": 1] {
                given[name] = value
            }
            given["file"] = file
            assertFails("outside of the bundle") { try self.load { _ = try CodedLayer(given, of: .linear) } }
        }
    }

    func testAMissingFileAndAPlacePastItsEnd() {
        var given = good.merging(
            ["blob_offset": 0, "blob_bytes": 1 << 40, "scales_offset": 1, "scales_bytes": 1]) { $1 }
        given["file"] = "absent.weights"
        assertFails("cannot be read") { try self.load { _ = try CodedLayer(given, of: .linear) } }
        given["file"] = "linear.tsv"
        assertFails("past the file's end") { try self.load { _ = try CodedLayer(given, of: .linear) } }
    }

    func testDamagedWeights() throws {
        for vector in try Golden.table("errors.tsv") {
            let blob = try Golden.data(vector["file"]!)
            assertFails(vector["status"]!) {
                try self.load { try CodedLayer(self.good, of: .linear).setWeights([blob, Data(count: 16)]) }
            }
        }
    }

    func testWeightsOfAnotherShapeOrNumber() throws {
        let product = try Product(try Golden.table("linear.tsv")[1])
        var given = product.parameters(int16: true)
        assertFails("its scales have") {
            try self.load { try CodedLayer(given, of: .linear).setWeights([product.blob, Data(count: 5)]) }
        }
        assertFails("it has 1 weights") {
            try self.load { try CodedLayer(given, of: .linear).setWeights([product.blob]) }
        }
        given["rows"] = product.opened.rows + 1
        assertFails("its parameters say") {
            try self.load { try CodedLayer(given, of: .linear).setWeights([product.blob, product.scaleData]) }
        }
        given["weights_of"] = "another"
        assertFails("no layer of that name") {
            try self.load {
                _ = try evaluate(CodedLayer(given, of: .linear), product.x, shape: [product.tokens, product.opened.cols])
            }
        }
    }

    func testWrongArrays() throws {
        let product = try Product(try Golden.table("linear.tsv")[1])
        let layer = try ModelScope(folder: Golden.folder).loading {
            let layer = try CodedLayer(product.parameters(int16: true), of: .linear)
            try layer.setWeights([product.blob, product.scaleData])
            return layer
        }
        let cols = product.opened.cols
        assertFails("expected [tokens, \(cols)]") { _ = try layer.outputShape([1, cols + 1]) }
        assertFails("have gaps") {
            var values = [Float](repeating: 0, count: 2 * (cols + 1))
            _ = try values.withUnsafeMutableBytes {
                try FloatArray($0.baseAddress!, shape: [2, cols], strides: [cols + 1, 1])
            }
        }
        assertFails("NON_FINITE") { _ = try evaluate(layer, [Float](repeating: .nan, count: cols), shape: [1, cols]) }
    }

    func testIdsThatAreNone() throws {
        let vector = try Golden.table("embedding.tsv")[1]
        let blob = try Golden.data(vector["blob"]!), opened = try OpenedBlob(blob)
        let layer = try ModelScope(folder: Golden.folder).loading {
            let layer = try CodedLayer(parameters(opened, vector), of: .embedding)
            try layer.setWeights([blob, Golden.data(vector["scales"]!)])
            return layer
        }
        assertFails("0.5 is no token id") { _ = try evaluate(layer, [0.5], shape: [1]) }
        assertFails("BAD_ID") { _ = try evaluate(layer, [Float(opened.rows)], shape: [1]) }
        assertFails("expected [tokens]") { _ = try layer.outputShape([]) }
    }

    func testWhatALayerFoundWrongIsThrownInPlaceOfCoreMLsError() {
        struct CoreMLError: Error {}
        assertFails("version is 2") {
            try ModelScope(folder: Golden.folder).loading {
                var bad = self.good
                bad["version"] = 2
                do { _ = try CodedLayer(bad, of: .linear) } catch { throw CoreMLError() }
            }
        }
    }

    func testPiecesCoverTheRowsOnce() {
        for rows in [UInt32(0)..<1, 0..<64, 5..<3000, 0..<49152, 7..<7] {
            for threads in [0, 1, 2, 6, 64] {
                let pieces = RowPieces(rows, threads: threads)
                let covered = (0..<pieces.count).flatMap { Array(pieces[$0]) }
                XCTAssertEqual(covered, Array(rows), "\(rows) in \(threads) threads")
            }
        }
    }

    private func load(_ body: () throws -> Void) throws { try ModelScope(folder: Golden.folder).loading(body) }
}

func assertFails(
    _ part: String, file: StaticString = #filePath, line: UInt = #line, _ body: () throws -> Void
) {
    XCTAssertThrowsError(try body(), file: file, line: line) { error in
        let words = (error as? LayerError)?.localizedDescription ?? "\(error)"
        XCTAssertTrue(words.contains(part), "\(words) lacks: \(part)", file: file, line: line)
    }
}
