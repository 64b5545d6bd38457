import Foundation

/// SHA-256 (FIPS 180-4), for systems without CryptoKit.
struct PortableSHA256 {
    private var state: [UInt32]
    private var held: [UInt8] = []
    private var byteCount: UInt64 = 0

    init() { state = Self.fractions(count: 8, root: 2) }

    mutating func update(_ bytes: UnsafeRawBufferPointer) {
        byteCount += UInt64(bytes.count)
        var at = 0
        if !held.isEmpty {
            at = min(64 - held.count, bytes.count)
            held += bytes[..<at]
            guard held.count == 64 else { return }
            held.withUnsafeBytes { compress($0) }
            held.removeAll(keepingCapacity: true)
        }
        while at + 64 <= bytes.count {
            compress(UnsafeRawBufferPointer(rebasing: bytes[at..<at + 64]))
            at += 64
        }
        held += bytes[at...]
    }

    /// As hexadecimal digits.
    mutating func finish() -> String {
        let bits = byteCount * 8
        var tail: [UInt8] = [0x80] + [UInt8](repeating: 0, count: (119 - held.count) % 64)
        tail += stride(from: 56, through: 0, by: -8).map { UInt8(truncatingIfNeeded: bits >> UInt64($0)) }
        tail.withUnsafeBytes { update($0) }
        return state.map { hexadecimal($0, digits: 8) }.joined()
    }

    private static let constants = fractions(count: 64, root: 3)

    /// The first 32 bits of the fractions of the square or cube roots of the first primes. A double has enough bits.
    private static func fractions(count: Int, root: Int) -> [UInt32] {
        let primes = (2...311).filter { n in (2..<n).allSatisfy { n % $0 != 0 } }.prefix(count)
        return primes.map { prime in
            let exact = root == 2 ? Double(prime).squareRoot() : cbrt(Double(prime))
            return UInt32((exact - exact.rounded(.down)) * 4_294_967_296)
        }
    }

    private mutating func compress(_ block: UnsafeRawBufferPointer) {
        func rotate(_ x: UInt32, _ n: UInt32) -> UInt32 { x >> n | x << (32 - n) }
        withUnsafeTemporaryAllocation(of: UInt32.self, capacity: 64) { w in
            for i in 0..<16 { w[i] = UInt32(bigEndian: block.loadUnaligned(fromByteOffset: 4 * i, as: UInt32.self)) }
            for i in 16..<64 {
                let a = w[i - 15], b = w[i - 2]
                let small = rotate(a, 7) ^ rotate(a, 18) ^ a >> 3
                w[i] = w[i - 16] &+ w[i - 7] &+ small &+ (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10)
            }
            var (a, b, c, d) = (state[0], state[1], state[2], state[3])
            var (e, f, g, h) = (state[4], state[5], state[6], state[7])
            Self.constants.withUnsafeBufferPointer { k in
                for i in 0..<64 {
                    let choice = (e & f) ^ (~e & g), sum = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)
                    let first = h &+ sum &+ choice &+ k[i] &+ w[i]
                    let majority = (a & b) ^ (a & c) ^ (b & c)
                    let second = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) &+ majority
                    (h, g, f, e, d, c, b, a) = (g, f, e, d &+ first, c, b, a, first &+ second)
                }
            }
            for (i, value) in [a, b, c, d, e, f, g, h].enumerated() { state[i] &+= value }
        }
    }
}
