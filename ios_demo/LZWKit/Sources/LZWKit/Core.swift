import Foundation
import TinyQMoECore

/// A status of the C++ core that is not OK.
public struct CoreError: LocalizedError, Equatable, Sendable {
    public let name: String
    public let number: Int

    init(_ status: tinyqmoe_status) {
        name = String(cString: tinyqmoe_status_name(status))
        number = Int(status.rawValue)
    }

    public var errorDescription: String? { "\(words) (\(name), \(number))" }

    private var words: String {
        switch number {
        case ..<64: "the coded weights are damaged"
        case 65: "there is not enough memory"
        case 67: "the numbers of the network overflowed"
        case 68: "a token is outside the vocabulary"
        case 69: "this processor lacks the instruction set that was asked for"
        default: "the core was called wrongly"
        }
    }
}

func check(_ status: tinyqmoe_status) throws {
    if status != TINYQMOE_OK { throw CoreError(status) }
}

/// A coded matrix (TQLZ). It keeps its bytes.
public final class CodedTensor {
    public let rows: Int
    public let cols: Int
    private let bytes: NSData
    private let handle: OpaquePointer

    /// `data` is one whole blob; `verify` also checks its payload and every row. Throws CoreError.
    public init(_ data: Data, verify: Bool = false) throws {
        // NSData, because its bytes stay where they are.
        bytes = NSData(data: data)
        var opened: OpaquePointer?
        try check(
            tinyqmoe_open(bytes.bytes, UInt64(bytes.count), verify ? UInt32(TINYQMOE_VERIFY_PAYLOAD) : 0, &opened))
        handle = opened!
        var info = tinyqmoe_info()
        tinyqmoe_get_info(handle, &info)
        (rows, cols) = (Int(info.rows), Int(info.cols))
    }

    deinit { tinyqmoe_close(handle) }

    /// Levels of some rows, in order. Throws CoreError.
    public func levels(_ range: Range<Int>) throws -> [Int8] {
        try [Int8](unsafeUninitializedCapacity: range.count * cols) { buffer, count in
            try check(
                tinyqmoe_decode_rows(
                    handle, UInt32(range.lowerBound), UInt32(range.upperBound), TINYQMOE_ISA_AUTO, buffer.baseAddress))
            count = range.count * cols
        }
    }
}

/// CRC-32 of bytes, as zlib's.
func crc32(_ bytes: UnsafeRawBufferPointer, continuing crc: UInt32 = 0) -> UInt32 {
    tinyqmoe_crc32(crc, bytes.baseAddress, UInt64(bytes.count))
}
