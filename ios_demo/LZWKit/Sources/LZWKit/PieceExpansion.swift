import Foundation

/// The bytes of one piece of a weight file.
struct PieceExpansion {
    private let piece: Recipe.Piece
    private let source: Data
    /// Levels decoded at a time; a multiple of 4, so that blocks of 2 bits end on whole bytes.
    private static let blockLevels = 1 << 22

    /// `file`: the name of the coded file, for errors. Throws BundleError where the piece lies outside of it.
    init(_ piece: Recipe.Piece, _ coded: Data, file: String) throws {
        guard piece.codedOffset + piece.codedBytes <= coded.count else {
            throw BundleError(
                .damaged, "\(file) ends at \(coded.count) bytes, a piece at \(piece.codedOffset + piece.codedBytes)",
                hint: "Load the model again.")
        }
        (self.piece, source) = (piece, coded[piece.codedOffset..<piece.codedOffset + piece.codedBytes])
    }

    /// Gives the bytes in blocks. Throws BundleError where the coded weights are damaged.
    func blocks(_ give: (UnsafeRawBufferPointer) throws -> Void) throws {
        guard piece.form != .bytes else { return try source.withUnsafeBytes(give) }
        let tensor: CodedTensor
        do { tensor = try CodedTensor(source) } catch { throw Self.damaged(error) }
        let step = max(4, Self.blockLevels / tensor.cols / 4 * 4)
        for begin in stride(from: 0, to: tensor.rows, by: step) {
            let levels: [Int8]
            do { levels = try tensor.levels(begin..<min(begin + step, tensor.rows)) } catch { throw Self.damaged(error) }
            try Self.packed(levels, piece.form).withUnsafeBytes(give)
        }
    }

    /// Levels as plain numbers, the first in the lowest bits of a byte: "uint2" is level + 1.
    static func packed(_ levels: [Int8], _ form: Recipe.Piece.Form) -> [UInt8] {
        let bits = form == .uint2 ? 2 : form == .int4 ? 4 : 8
        guard bits < 8 else { return levels.withUnsafeBytes { Array($0) } }
        let inByte = 8 / bits, mask = UInt8(1 << bits - 1), shift: Int8 = form == .uint2 ? 1 : 0
        return levels.withUnsafeBufferPointer { levels in
            (0..<(levels.count + inByte - 1) / inByte).map { byte in
                var packed: UInt8 = 0
                for i in 0..<min(inByte, levels.count - byte * inByte) {
                    packed |= (UInt8(bitPattern: levels[byte * inByte + i] &+ shift) & mask) << UInt8(bits * i)
                }
                return packed
            }
        }
    }

    private static func damaged(_ error: Error) -> BundleError {
        BundleError(
            .damaged, "the weights cannot be rebuilt: \(error.localizedDescription)", hint: "Load the model again.")
    }
}
