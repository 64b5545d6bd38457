import Foundation

/// Rows of a matrix in pieces, for threads: a piece is too large to be worth less than a thread's start.
struct RowPieces {
    private let rows: Range<UInt32>
    private let grain: UInt32
    let count: Int

    private static let minRows: UInt32 = 64
    private static let piecesPerThread: UInt32 = 3  // so that a slow core takes fewer of them

    init(_ rows: Range<UInt32>, threads: Int) {
        self.rows = rows
        let n = UInt32(rows.count)
        let pieces = Self.piecesPerThread * UInt32(max(threads, 1))
        let equal = (n + pieces - 1) / pieces
        grain = max(Self.minRows, (equal + 3) / 4 * 4)
        count = Int((n + grain - 1) / grain)
    }

    subscript(i: Int) -> Range<UInt32> {
        let begin = rows.lowerBound + UInt32(i) * grain
        return begin..<min(begin + grain, rows.upperBound)
    }
}

/// What the shapes of Core ML's arrays mean to a custom layer.
enum LayerShapes {
    /// Shape of the product of [.., cols] with a matrix: [.., rows].
    static func product(_ input: [Int], rows: Int, cols: Int, layer: String) throws -> [Int] {
        guard let last = input.last, last == cols, input.allSatisfy({ $0 > 0 }) else {
            throw LayerError(layer, "its input is \(input), expected [tokens, \(cols)]")
        }
        return input.dropLast() + [rows]
    }

    /// Shape of the rows of ids [..]: [.., cols].
    static func lookUp(_ input: [Int], cols: Int, layer: String) throws -> [Int] {
        guard !input.isEmpty, input.allSatisfy({ $0 > 0 }) else {
            throw LayerError(layer, "its input is \(input), expected [tokens]")
        }
        return input + [cols]
    }

    /// Number of tokens of an array of hidden states [.., width].
    static func tokens(_ shape: [Int]) -> Int { shape.dropLast().reduce(1, *) }

    /// Throws unless an array's values follow each other without gaps, last axis first.
    static func requireContiguous(_ shape: [Int], strides: [Int]) throws {
        var expected = 1
        for (size, stride) in zip(shape, strides).reversed() {
            guard size == 1 || stride == expected else {
                throw LayerError("custom layer", "an array \(shape) has strides \(strides): its values have gaps")
            }
            expected *= size
        }
    }

    static func require(_ shape: [Int], _ expected: [Int], layer: String) throws {
        guard shape == expected else { throw LayerError(layer, "its output is \(shape), expected \(expected)") }
    }

    /// Token ids that Core ML passes as floats. Throws for what is no whole number.
    static func ids(_ values: UnsafeBufferPointer<Float>, layer: String) throws -> [Int64] {
        try values.map { value in
            guard let id = Int64(exactly: value) else { throw LayerError(layer, "\(value) is no token id") }
            return id
        }
    }
}
