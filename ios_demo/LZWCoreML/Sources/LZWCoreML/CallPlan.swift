import LZWKit

/// One call of a package: which tokens it takes.
struct PackageCall: Equatable {
    let tokens: Range<Int>
    /// Whether it is a call of `prefill`, which is padded to its size.
    let isPrefill: Bool
}

/// How tokens are cut into calls.
enum CallPlan {
    /// Calls of the package with custom layers: `most` tokens at a time.
    static func network(_ count: Int, most: Int) -> [PackageCall] {
        stride(from: 0, to: count, by: most).map {
            PackageCall(tokens: $0..<min($0 + most, count), isPrefill: false)
        }
    }

    /// Calls of the ML Program: `prefill` while its `size` slots fit into the context, else token by token.
    /// A padded call writes into all of its slots, so the last ones of a context are for `decode`.
    static func program(_ count: Int, position: Int, size: Int, context: Int) -> [PackageCall] {
        var calls: [PackageCall] = []
        var at = 0
        while at < count {
            let isPrefill = position + at + size <= context && count - at > 1
            let n = isPrefill ? min(size, count - at) : 1
            calls.append(PackageCall(tokens: at..<at + n, isPrefill: isPrefill))
            at += n
        }
        return calls
    }

    /// The tokens of a call, with zeros up to `size`.
    static func padded(_ tokens: ArraySlice<Int32>, to size: Int) -> [Int32] {
        tokens + [Int32](repeating: 0, count: max(0, size - tokens.count))
    }
}

/// What both engines of Core ML keep: how far the cache is filled, and what calls took.
struct CacheFill {
    let context: Int
    let vocab: Int
    private(set) var positions = 0
    private var tokensFed = 0
    private var seconds = 0.0

    init(context: Int, vocab: Int) { (self.context, self.vocab) = (context, vocab) }

    /// Throws `BundleError` for tokens that the model does not know or that find no room.
    func require(_ tokens: [Int32]) throws {
        if let bad = tokens.first(where: { $0 < 0 || $0 >= vocab }) {
            throw BundleError(
                .notValid, "token \(bad) is not one of the model's \(vocab)", hint: "Export the model again.")
        }
        guard !tokens.isEmpty, positions + tokens.count <= context else {
            throw BundleError(
                .contextFull, "\(tokens.count) tokens at position \(positions) do not fit a context of \(context)",
                hint: "Begin a new conversation.")
        }
    }

    mutating func add(_ count: Int, took duration: Duration) {
        positions += count
        tokensFed += count
        let parts = duration.components
        seconds += Double(parts.seconds) + Double(parts.attoseconds) * 1e-18
    }

    /// What a cache holds from `positions` on is not looked at, so nothing is cleared.
    mutating func trim(to positions: Int) throws {
        guard positions >= 0, positions <= self.positions else {
            throw BundleError(
                .notValid, "the cache holds \(self.positions) positions, not \(positions)", hint: "Report this as a bug.")
        }
        self.positions = positions
    }

    func state(kvCacheBytes: Int, mappedBytes: Int) -> EngineState {
        var state = EngineState()
        (state.positions, state.context, state.vocab) = (positions, context, vocab)
        (state.kvCacheBytes, state.mappedBytes) = (kvCacheBytes, mappedBytes)
        (state.tokensFed, state.feedSeconds) = (tokensFed, seconds)
        return state
    }
}

/// Index of the highest logit, of equals the first. Logits that are no numbers are refused.
func best(of logits: [Float]) throws -> Int32 {
    guard let highest = logits.max(), logits.allSatisfy(\.isFinite), let index = logits.firstIndex(of: highest) else {
        throw BundleError(
            .damaged, "the model's logits are no numbers", hint: "Export it again with --coreml-format custom-op.")
    }
    return Int32(index)
}
