import Foundation

/// A bundle of the store. `id` is the name of its folder.
public struct StoredBundle: Sendable, Identifiable {
    public let id: String
    /// Or what is wrong with it, in words.
    public let bundle: Result<ModelBundle, BundleError>
    public let byteCount: Int
}

/// An import that was paused or broken: it goes on with `BundleImport`.
public struct PartialImport: Codable, Equatable, Sendable, Identifiable {
    public let id: String
    /// An address, or the folder that was picked.
    public let source: URL
    public let format: Package.Format
    /// Of all files that are wanted; nil before their number is known.
    public var totalBytes: Int?
    public var doneBytes = 0
}

/// The models on this device: a folder each, in `folder`.
public struct BundleStore: Sendable {
    public let folder: URL

    /// Makes the folder where there is none.
    public init(folder: URL) throws {
        self.folder = folder
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    }

    /// All models, by name. A damaged one is listed with its problem.
    public func models() -> [StoredBundle] {
        names().filter { !$0.hasPrefix(".") }.sorted().map { id in
            let bundle = Result { try ModelBundle.open(folder(of: id)) }.mapError { error in
                error as? BundleError
                    ?? BundleError(.damaged, error.localizedDescription, hint: "Delete the model and load it again.")
            }
            return StoredBundle(id: id, bundle: bundle, byteCount: Self.byteCount(folder(of: id)))
        }
    }

    /// Imports that are not complete.
    public func partialImports() -> [PartialImport] {
        names().filter { $0.hasSuffix(Self.partialSuffix) }.sorted().compactMap { name in
            let work = folder.appendingPathComponent(name)
            guard let data = try? Data(contentsOf: work.appendingPathComponent(PartialImport.fileName)),
                var partial = try? JSONDecoder().decode(PartialImport.self, from: data)
            else { return nil }
            partial.doneBytes = Self.byteCount(work.appendingPathComponent(PartialImport.filesName))
            return partial
        }
    }

    /// The folder that the model has or will have.
    public func folder(of id: String) -> URL { folder.appendingPathComponent(id) }

    /// Deletes a model, or an import that is not complete. Its name goes first, so that no half of it is left.
    public func delete(_ id: String) throws {
        try discard(folder(of: id))
        try discard(partialFolder(of: id))
    }

    /// Bytes that are free on the disk of the store.
    public func freeBytes() throws -> Int {
        let attributes = try FileManager.default.attributesOfFileSystem(forPath: folder.path)
        return (attributes[.systemFreeSize] as? NSNumber)?.intValue ?? 0
    }

    private static let partialSuffix = ".partial"

    func partialFolder(of id: String) -> URL { folder.appendingPathComponent(".\(id)\(Self.partialSuffix)") }

    /// Puts a complete folder in the place of a model.
    func publish(_ complete: URL, as id: String) throws {
        try discard(folder(of: id))
        try FileManager.default.moveItem(at: complete, to: folder(of: id))
        try discard(partialFolder(of: id))
    }

    private func discard(_ url: URL) throws {
        guard FileManager.default.fileExists(atPath: url.path) else { return }
        let gone = folder.appendingPathComponent(".\(UUID().uuidString).deleted")
        try FileManager.default.moveItem(at: url, to: gone)
        try FileManager.default.removeItem(at: gone)
    }

    private func names() -> [String] { (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? [] }

    private static func byteCount(_ folder: URL) -> Int {
        let files = FileManager.default.enumerator(at: folder, includingPropertiesForKeys: [.fileSizeKey])
        let urls = files?.compactMap { $0 as? URL } ?? []
        return urls.reduce(0) { $0 + ((try? $1.resourceValues(forKeys: [.fileSizeKey]).fileSize) ?? 0) }
    }
}

extension PartialImport {
    static let fileName = "import.json", filesName = "files"
}

extension Package.Format: Codable {}
