/// Chooses tokens. The same seed and logits give the same tokens in Kotlin and Swift: tests/golden/README.md has the rule,
/// operation by operation.
public struct Sampler: Sendable {
    public let sampling: Sampling
    private var state: UInt64

    public init(_ sampling: Sampling) { (self.sampling, state) = (sampling, sampling.seed) }

    /// A token for logits, float [vocab].
    public mutating func choose(_ logits: [Float]) -> Int32 {
        let order = Self.order(logits, most: sampling.isGreedy ? 1 : sampling.topK)
        if sampling.isGreedy { return Int32(order[0]) }
        let highest = Double(logits[order[0]])
        let weights = order.map { Self.exponential((Double(logits[$0]) - highest) / sampling.temperature) }
        let most = sampling.topP * weights.reduce(0, +)
        var mass = 0.0, kept = 0
        repeat {
            mass += weights[kept]
            kept += 1
        } while mass < most && kept < weights.count
        let drawn = uniform() * mass
        var sum = 0.0
        for i in 0..<kept {
            sum += weights[i]
            if sum > drawn { return Int32(order[i]) }
        }
        return Int32(order[kept - 1])
    }

    /// Tokens by their logits, the highest first, of equals the first; `most` above 0: only so many.
    private static func order(_ logits: [Float], most: Int) -> [Int] {
        if most == 1 { return [logits.indices.reduce(0) { logits[$1] > logits[$0] ? $1 : $0 }] }
        let sorted = logits.indices.sorted { (logits[$0], $1) > (logits[$1], $0) }
        return most > 0 ? Array(sorted.prefix(most)) : sorted
    }

    /// A number from 0 to below 1, by splitmix64.
    private mutating func uniform() -> Double {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return Double((z ^ z >> 31) >> 11) * 0x1p-53
    }

    /// exp without a math library, whose last bit differs between systems.
    private static func exponential(_ x: Double) -> Double {
        if x < -700 { return 0 }
        let n = (x * 0x1.71547652b82fep0 - 0.5).rounded(.towardZero)
        let r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33
        var p = 1.0
        for k in stride(from: 13.0, through: 1, by: -1) { p = 1 + p * r / k }
        return p * Double(sign: .plus, exponent: Int(n), significand: 1)
    }
}
