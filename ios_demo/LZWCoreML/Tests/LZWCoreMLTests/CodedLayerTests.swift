import Foundation
import XCTest

@testable import LZWCoreML

/// Custom layers against the golden vectors, fed as Core ML feeds them.
final class CodedLayerTests: XCTestCase {
    func testProductsHaveTheBitsOfTheGoldenVectors() throws {
        let vectors = try Golden.table("linear.tsv")
        XCTAssertGreaterThan(vectors.count, 10)
        for vector in vectors {
            let product = try Product(vector)
            XCTAssertEqual(Golden.crc32(try product.run(int16: true)), vector["y_crc32"], vector["blob"]!)
        }
    }

    func testFloatProductsAreThoseOfTheLevels() throws {
        for vector in try Golden.table("linear.tsv") {
            let product = try Product(vector)
            let expected = try product.inDouble()
            for (y, wanted) in zip(try product.run(int16: false), expected) {
                XCTAssertEqual(Double(y), wanted.sum, accuracy: 1e-5 * wanted.magnitude + 1e-30, vector["blob"]!)
            }
        }
    }

    func testLookUpsHaveTheBitsOfTheGoldenVectors() throws {
        let vectors = try Golden.table("embedding.tsv")
        XCTAssertGreaterThan(vectors.count, 3)
        for vector in vectors {
            let blob = try Golden.data(vector["blob"]!), opened = try OpenedBlob(blob)
            let ids = try Golden.values(vector["ids"]!, as: Int64.self).map(Float.init)
            let rows = try ModelScope(folder: Golden.folder).loading {
                let layer = try CodedLayer(
                    parameters(opened, vector), of: .embedding)
                try layer.setWeights([blob, Golden.data(vector["scales"]!)])
                return try evaluate(layer, ids, shape: [ids.count])
            }
            XCTAssertEqual(Golden.crc32(rows), vector["out_crc32"], vector["blob"]!)
        }
    }

    func testAHeadSharesTheWeightsOfALayerThatComesLater() throws {
        let vector = try Golden.table("linear.tsv")[0]
        let product = try Product(vector)
        let y = try ModelScope(folder: Golden.folder).loading {
            var shared = product.parameters(int16: true)
            shared["weights_of"] = shared["name"]
            let head = try CodedLayer(shared, of: .linear)
            let own = try CodedLayer(product.parameters(int16: true), of: .linear)
            try own.setWeights([product.blob, product.scaleData])
            return try evaluate(head, product.x, shape: [product.tokens, product.opened.cols])
        }
        XCTAssertEqual(Golden.crc32(y), vector["y_crc32"])
    }

    func testWeightsInAFileOfTheBundle() throws {
        let product = try Product(try Golden.table("linear.tsv")[1])
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        // One byte before the scales: they must not need an even place.
        try (product.blob + Data([0]) + product.scaleData).write(to: folder.appendingPathComponent("side.weights"))
        var given = product.parameters(int16: true)
        given["file"] = "side.weights"
        (given["blob_offset"], given["blob_bytes"]) = (0, product.blob.count)
        (given["scales_offset"], given["scales_bytes"]) = (product.blob.count + 1, product.scaleData.count)
        let y = try ModelScope(folder: folder).loading {
            let layer = try CodedLayer(given, of: .linear)
            return try evaluate(layer, product.x, shape: [product.tokens, product.opened.cols])
        }
        XCTAssertEqual(y, try product.run(int16: true))
    }
}

/// A golden product, run through a layer.
struct Product {
    let blob: Data
    let scaleData: Data
    let x: [Float]
    let tokens: Int
    let groupSize: Int
    let vector: [String: String]
    let opened: OpenedBlob

    init(_ vector: [String: String]) throws {
        blob = try Golden.data(vector["blob"]!)
        scaleData = try Golden.data(vector["scales"]!)
        x = try Golden.values(vector["activations"]!, as: Float.self)
        (tokens, groupSize, self.vector) = (Int(vector["n_tokens"]!)!, Int(vector["group_size"]!)!, vector)
        opened = try OpenedBlob(blob)
    }

    func parameters(int16: Bool) -> [String: Any] {
        var given = LZWCoreMLTests.parameters(opened, vector)
        given["int16_activations"] = int16
        return given
    }

    func run(int16: Bool) throws -> [Float] {
        try ModelScope(folder: Golden.folder).loading {
            let layer = try CodedLayer(parameters(int16: int16), of: .linear)
            try layer.setWeights([blob, scaleData])
            return try evaluate(layer, x, shape: [tokens, opened.cols])
        }
    }

    /// The same in double precision, and the sum of magnitudes, by which an error is judged.
    func inDouble() throws -> [(sum: Double, magnitude: Double)] {
        let scales = widened(scaleData, vector["scale_type"]!)
        let (rows, cols) = (opened.rows, opened.cols), groups = (cols + groupSize - 1) / groupSize
        return (0..<tokens).flatMap { token in
            (0..<rows).map { row in
                let terms = (0..<cols).map { col in
                    Double(opened.levels[row * cols + col]) * scales[row * groups + col / groupSize]
                        * Double(x[token * cols + col])
                }
                return (terms.reduce(0, +), terms.reduce(0) { $0 + abs($1) })
            }
        }
    }
}

func parameters(_ blob: OpenedBlob, _ vector: [String: String]) -> [String: Any] {
    [
        "version": 3, "name": "w", "rows": blob.rows, "cols": blob.cols,
        "group_size": Int(vector["group_size"]!)!, "scale_type": vector["scale_type"]!,
    ]
}

/// The values of stored scales, by the formula of `tinyqmoe_scale_type`.
func widened(_ stored: Data, _ type: String) -> [Double] {
    if type == "float32" { return stored.withUnsafeBytes { $0.bindMemory(to: Float.self).map(Double.init) } }
    return stored.withUnsafeBytes { bytes in
        bytes.bindMemory(to: UInt16.self).map { code in
            let exponent = Int(code >> 10) - 47, mantissa = Double(code & 1023) / 1024
            return code == 0 ? 0 : Double(sign: .plus, exponent: exponent, significand: 1 + mantissa)
        }
    }
}

func evaluate(_ layer: CodedLayer, _ input: [Float], shape: [Int]) throws -> [Float] {
    let outputShape = try layer.outputShape(shape)
    var input = input
    var output = [Float](repeating: .nan, count: outputShape.reduce(1, *))
    try input.withUnsafeMutableBytes { x in
        try output.withUnsafeMutableBytes { y in
            try layer.evaluate(
                FloatArray(x.baseAddress!, shape: shape, strides: rowMajor(shape)),
                into: FloatArray(y.baseAddress!, shape: outputShape, strides: rowMajor(outputShape)))
        }
    }
    return output
}

func rowMajor(_ shape: [Int]) -> [Int] {
    shape.indices.map { shape[($0 + 1)...].reduce(1, *) }
}
