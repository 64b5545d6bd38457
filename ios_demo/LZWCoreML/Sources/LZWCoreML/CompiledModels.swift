import Foundation
import LZWKit

/// The compiled forms of packages, each made once and kept: Core ML takes seconds to minutes for one.
///
/// A form is kept under the digest of its manifest, so another export of the same name never finds it.
/// It is moved here whole, and what a killed app left is removed.
public struct CompiledModels: Sendable {
    private let folder: URL

    /// `folder` is for these files alone, and is made where it is absent.
    public init(folder: URL) { self.folder = folder }

    /// The compiled form of a package of the manifest with this digest. Where there is none, `package` makes what is
    /// compiled, and `compile` compiles it into a folder that may be moved, as `MLModel.compileModel(at:)` does.
    public func model(
        digest: String, of format: Package.Format,
        package: () async throws -> URL, compile: (URL) async throws -> URL
    ) async throws -> URL {
        let name = "\(digest.prefix(32))-\(format.rawValue).mlmodelc"
        let place = folder.appendingPathComponent(name), files = FileManager.default
        if files.fileExists(atPath: place.path) { return place }
        try files.createDirectory(at: folder, withIntermediateDirectories: true)
        let made = try await compile(package())
        // The temporary folder may be on another volume: what is not whole has another name.
        let partial = folder.appendingPathComponent(".\(name).partial")
        try? files.removeItem(at: partial)
        try files.moveItem(at: made, to: partial)
        try files.moveItem(at: partial, to: place)
        return place
    }

    /// Removes the compiled forms of all models but those with these digests.
    public func removeAll(but kept: [String]) {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
        let prefixes = kept.map { $0.prefix(32) }
        for name in names where !prefixes.contains(where: { name.hasPrefix($0) }) {
            try? FileManager.default.removeItem(at: folder.appendingPathComponent(name))
        }
    }
}
