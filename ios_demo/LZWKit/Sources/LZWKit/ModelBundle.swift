import Foundation

/// A model on this device: a folder with a manifest and the files it names.
public struct ModelBundle: Sendable {
    public let folder: URL
    public let manifest: Manifest

    /// Reads the manifest of a folder; `verify` reads the other files. Throws BundleError.
    public static func open(_ folder: URL) throws -> ModelBundle {
        let file = folder.appendingPathComponent(Manifest.fileName)
        guard let data = try? Data(contentsOf: file) else {
            throw BundleError(
                .notABundle, "\(folder.lastPathComponent) is not a model: it has no \(Manifest.fileName)",
                hint: "Choose the folder that `tinyqmoe export` wrote.")
        }
        return ModelBundle(folder: folder, manifest: try Manifest(data: data))
    }

    /// The place of a file that the manifest names.
    public func file(_ path: String) -> URL { folder.appendingPathComponent(path) }

    /// Compares the files of a package with the manifest: their sizes, and with `hashed` their SHA-256.
    /// Throws BundleError with all that differ.
    public func verify(_ format: Package.Format, check: Bool = true, hashed: Bool = false) throws {
        let problems = try manifest.files(for: format, check: check).compactMap { try problem(of: $0, hashed: hashed) }
        guard problems.isEmpty else {
            throw BundleError(
                .damaged, "\(manifest.modelName) is damaged", problems: problems,
                hint: "Delete the model and load it again.")
        }
    }

    private func problem(of entry: FileEntry, hashed: Bool) throws -> String? {
        let url = file(entry.path)
        guard let there = try? url.resourceValues(forKeys: [.fileSizeKey, .isRegularFileKey]),
            there.isRegularFile == true
        else { return "\(entry.path) is missing" }
        guard there.fileSize == entry.byteCount else {
            return "\(entry.path) has \(there.fileSize ?? 0) bytes, expected \(entry.byteCount)"
        }
        guard hashed, try SHA256Digest.of(url) != entry.sha256 else { return nil }
        return "\(entry.path) has been changed: its SHA-256 differs from the manifest's"
    }
}
