import Foundation

#if canImport(CryptoKit)
    import CryptoKit

    /// SHA-256 of bytes that come in pieces.
    struct SHA256Digest {
        private var hash = CryptoKit.SHA256()
        mutating func update(_ bytes: UnsafeRawBufferPointer) { hash.update(bufferPointer: bytes) }
        /// As hexadecimal digits.
        mutating func finish() -> String { hash.finalize().map { hexadecimal(UInt32($0), digits: 2) }.joined() }
    }
#else
    typealias SHA256Digest = PortableSHA256
#endif

func hexadecimal(_ value: UInt32, digits: Int) -> String {
    let text = String(value, radix: 16)
    return String(repeating: "0", count: digits - text.count) + text
}

extension SHA256Digest {
    /// SHA-256 of digests one after the other; all are hexadecimal digits.
    static func of(digests: [String]) -> String {
        var digest = SHA256Digest()
        for text in digests {
            let bytes = stride(from: 0, to: text.count, by: 2).map { UInt8(text.dropFirst($0).prefix(2), radix: 16)! }
            bytes.withUnsafeBytes { digest.update($0) }
        }
        return digest.finish()
    }

    /// SHA-256 of a file, as hexadecimal digits. `read` is told the bytes of each piece, and may throw to end it.
    static func of(_ file: URL, read: (Int) throws -> Void = { _ in }) throws -> String {
        let handle = try FileHandle(forReadingFrom: file)
        defer { try? handle.close() }
        var digest = SHA256Digest()
        while let piece = try handle.read(upToCount: 1 << 20), !piece.isEmpty {
            piece.withUnsafeBytes { digest.update($0) }
            try read(piece.count)
        }
        return digest.finish()
    }
}
