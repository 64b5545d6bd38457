import Foundation
import LZWKit

/// Whether a model will fit, before it is loaded.
public struct LoadForecast: Equatable, Sendable {
    public let fits: Bool
    /// A sentence with the figures.
    public let words: String

    /// `limitBytes`: what the app may still take.
    public init(_ manifest: Manifest, _ format: Package.Format, limitBytes: Int) throws {
        if format == .pte {
            let forecast = try MemoryForecast(manifest, limitBytes: limitBytes)
            (fits, words) = (forecast.fits, forecast.words)
            return
        }
        let files = try manifest.files(for: format, check: false)
        let cache = manifest.package(format)?.kvCacheBytes ?? 0
        let weights = files.reduce(0) { $0 + $1.byteCount }
        // Core ML decides whether it widens the weights of an ML Program; codes of custom layers stay mapped.
        let needed = cache + (format == .mlprogram ? weights : 0)
        fits = needed <= limitBytes
        words = Self.words(needed: needed, weights: weights, limit: limitBytes, fits: fits)
    }

    private static func words(needed: Int, weights: Int, limit: Int, fits: Bool) -> String {
        func megabytes(_ bytes: Int) -> String { "\((bytes + 999_999) / 1_000_000) MB" }
        let end = fits ? "It should fit; Core ML may take more." : "It does not fit: choose a smaller model."
        return "It needs \(megabytes(needed)) or more, its files have \(megabytes(weights)); "
            + "this app may take \(megabytes(limit)). \(end)"
    }
}

extension ModelBundle {
    /// The package whose files are here: an import brings one.
    public var installedFormat: Package.Format? {
        Package.Format.allCases.first { format in
            manifest.package(format) != nil && (try? verify(format, check: false)) != nil
        }
    }
}
