import Foundation

/// One check of a model, as `tinyqmoe parity` has it (docs/parity.md): its verdict, what was run, and what was measured.
/// KL in nats, SQNR in dB; nil where it is not measured.
public struct Check: Codable, Equatable, Sendable {
    public enum Verdict: String, Codable, Sendable { case logits, greedy, bits, context }

    public let verdict: Verdict
    public let what: String
    public let passed: Bool
    public let positions: Int
    public var klMedian, klWorst, sqnrMedian, sqnrWorst: Double?
    public var detail = ""
}

/// All checks of a model on this device.
public struct CheckReport: Codable, Equatable, Sendable {
    public let model: String
    public let device: String
    public let checks: [Check]
    /// SHA-256 of the exact logits of all prompts, as `tinyqmoe check` says it; nil where the package is not exact.
    public let bits: String?

    public var passed: Bool { !checks.isEmpty && checks.allSatisfy(\.passed) }

    /// Whether the logits have the same bits as where the bundle was made.
    public var sameBits: Bool {
        let bits = checks.filter { $0.verdict == .bits }
        return !bits.isEmpty && bits.allSatisfy(\.passed)
    }

    /// The report in words, to show and share.
    public var text: String {
        let lines = checks.map { check in
            let figures = [check.sqnrMedian.map { String(format: "%.1f dB", $0) }, check.detail.isEmpty ? nil : check.detail]
            return (["\(check.passed ? "passed" : "FAILED")  \(check.verdict.rawValue)", check.what] + figures.compactMap { $0 })
                .joined(separator: "  ")
        }
        let bits = sameBits ? "The logits have the same bits as where the model was made." : "The bits of the logits were not confirmed."
        let digest = self.bits.map { ["SHA-256 of the exact logits: \($0)"] } ?? []
        return (["\(model) on \(device): \(passed ? "passed" : "FAILED")", bits] + digest + lines).joined(separator: "\n")
    }

    /// The report as JSON, to share.
    public func json() throws -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        encoder.nonConformingFloatEncodingStrategy = .convertToString(
            positiveInfinity: "Infinity", negativeInfinity: "-Infinity", nan: "NaN")
        return try encoder.encode(self)
    }
}

/// "Check this model": runs the prompts of `reference.safetensors`, and judges the answers as `tinyqmoe parity` does.
/// Whether the matrices decode to the quantizer's levels is left to the computer.
public struct ModelCheck: Sendable {
    private let bundle: ModelBundle
    private let package: Package
    private let device: String

    /// Throws BundleError where the bundle has no package of the format.
    public init(_ bundle: ModelBundle, format: Package.Format = .pte, device: String) throws {
        _ = try bundle.manifest.files(for: format)
        (self.bundle, self.device) = (bundle, device)
        package = bundle.manifest.package(format)!
    }

    /// The report. `progress` is told the tokens that were run and those that will be. Takes many seconds; ends between two
    /// calls of the engine when its task is cancelled. Throws BundleError.
    public func run(on session: Session, progress: @escaping @Sendable (Int, Int) -> Void = { _, _ in }) async throws
        -> CheckReport
    {
        let task = Task { try await session.withEngine { try run($0, progress: progress) } }
        return try await withTaskCancellationHandler { try await task.value } onCancel: { task.cancel() }
    }

    /// The same on an engine that nobody else uses; what it held is forgotten.
    func run(_ engine: any Engine, progress: @escaping (Int, Int) -> Void) throws -> CheckReport {
        let answers = try Reference(bundle, package).answers
        let total = answers.reduce(0) { $0 + $1.workTokens }
        var judge = Judge(engine: engine, gate: try Gate(package)) { done in progress(done, total) }
        let checks = try answers.flatMap { try judge.judge($0) }
        let digests = judge.exactDigests
        let bits = digests.isEmpty ? nil : SHA256Digest.of(digests: digests)
        return CheckReport(model: bundle.manifest.modelName, device: device, checks: checks, bits: bits)
    }
}
