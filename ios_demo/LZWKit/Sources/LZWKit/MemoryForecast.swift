import Foundation

/// Memory that a session of the core will take, before it is loaded, from the manifest's figures.
public struct MemoryForecast: Equatable, Sendable {
    public let kvCacheBytes: Int
    public let bufferBytes: Int
    /// Pages of the files with weights: the system may drop them, and reads them again.
    public let cleanBytes: Int
    public let limitBytes: Int

    /// They count against the limit, and cannot be dropped.
    public var dirtyBytes: Int { kvCacheBytes + bufferBytes }

    /// Measured of a session: what it takes besides, and what an open matrix takes.
    static let runtimeBytes = 500_000, matrixBytes = 5_400

    /// `limitBytes`: what the app may take, such as `os_proc_available_memory()` plus its footprint.
    /// Throws BundleError for a bundle without a package for sessions.
    public init(_ manifest: Manifest, limitBytes: Int) throws {
        let files = try manifest.files(for: .pte, check: false)
        let package = manifest.package(.pte)!
        let network = manifest.network
        let heads = (2 * network.heads + 2 * network.kvHeads + 1) * network.headDim
        let rows = 4 * package.prefillTokens * (2 * network.hidden + heads + 2 * network.inner)
        let quantized = 4 * package.prefillTokens * max(network.hidden, network.inner)
        let logits = 2 * 4 * network.vocab
        let fixed = Self.runtimeBytes + Self.matrixBytes * package.matrixCount
        kvCacheBytes = package.kvCacheBytes
        bufferBytes = rows + quantized + logits + fixed
        cleanBytes = files.filter { package.files.contains($0.path) }.reduce(0) { $0 + $1.byteCount }
        self.limitBytes = limitBytes
    }

    public var fits: Bool { dirtyBytes <= limitBytes }

    /// Whether the weights stay in memory as well, so that tokens do not wait for storage.
    public var fitsWithWeights: Bool { dirtyBytes + cleanBytes <= limitBytes }

    /// A sentence for the user.
    public var words: String {
        func megabytes(_ bytes: Int) -> String { "\((bytes + 999_999) / 1_000_000) MB" }
        let needs = "It needs \(megabytes(dirtyBytes)) and maps \(megabytes(cleanBytes)) of weights"
        let limit = "this app may take \(megabytes(limitBytes))"
        if !fits { return "\(needs); \(limit). It does not fit: choose a smaller model, or export with a shorter context." }
        if !fitsWithWeights { return "\(needs); \(limit). It fits, but weights will be read from storage again and again." }
        return "\(needs); \(limit). It fits."
    }
}
