import Foundation

/// Gates of the median and the worst position: KL in nats, signal-to-noise ratio in dB (docs/parity.md).
struct Gate: Equatable, Sendable {
    let medianKL, medianSQNR, worstKL, worstSQNR: Double

    static let float = Gate(medianKL: 1e-9, medianSQNR: 95, worstKL: 1e-9, worstSQNR: 90)
    static let rounded = Gate(medianKL: 5e-4, medianSQNR: 42, worstKL: 5e-3, worstSQNR: 23)
    static let coarseCache = Gate(medianKL: 2e-2, medianSQNR: 24, worstKL: 3e-2, worstSQNR: 19)
    static let half = Gate(medianKL: 4e-3, medianSQNR: 30, worstKL: 2e-2, worstSQNR: 16)
}

extension Gate {
    /// Of the arithmetic of a package: the coarsest rounding decides.
    init(_ package: Package) throws {
        switch (package.activations, package.kvType) {
        case ("float32", "float32"): self = .float
        case ("int16", "float16"), ("int16", "float32"), ("float32", "float16"): self = .rounded
        case ("int16", "int8"), ("float32", "int8"): self = .coarseCache
        case ("float16", "float16"): self = .half
        default:
            throw BundleError(
                .notSupported, "there is no gate for \(package.activations) with a cache in \(package.kvType)",
                hint: "Update the app.")
        }
    }

    /// Margin between two logits that noise of the permitted size can close: twice its standard deviation.
    func nearTie(_ reference: [Float]) -> Double {
        2 * (variance(reference) / Double(reference.count)).squareRoot() * pow(10, -worstSQNR / 20)
    }
}

/// Sum of the squared distances from the mean.
private func variance(_ row: [Float]) -> Double {
    let mean = row.reduce(0.0) { $0 + Double($1) } / Double(row.count)
    return row.reduce(0.0) { $0 + (Double($1) - mean) * (Double($1) - mean) }
}

/// How far logits are from the reference at one position: KL(reference || package), SQNR, and whether the best token is the
/// reference's, or a near tie with it.
struct Difference {
    let kl, sqnr: Double
    let same: Bool

    init(_ reference: [Float], _ got: [Float], _ gate: Gate) {
        guard got.count == reference.count, got.allSatisfy(\.isFinite) else {
            (kl, sqnr, same) = (.infinity, -.infinity, false)
            return
        }
        let logP = logSumExp(reference), logQ = logSumExp(got)
        var divergence = 0.0, noise = 0.0, best = 0
        for i in got.indices {
            let p = Double(reference[i]) - logP, q = Double(got[i]) - logQ
            divergence += exp(p) * (p - q)
            let error = Double(got[i]) - Double(reference[i])
            noise += error * error
            if got[i] > got[best] { best = i }
        }
        kl = max(0, divergence)
        let signal = variance(reference)
        sqnr = noise == 0 ? .infinity : signal > 0 ? 10 * log10(signal / noise) : -.infinity
        same = Double(reference.max()!) - Double(reference[best]) <= gate.nearTie(reference)
    }
}

private func logSumExp(_ row: [Float]) -> Double {
    let highest = Double(row.max()!)
    return highest + log(row.reduce(0.0) { $0 + exp(Double($1) - highest) })
}
