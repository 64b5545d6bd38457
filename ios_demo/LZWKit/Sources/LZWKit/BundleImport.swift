import Foundation

/// How far an import is: bytes of all files that are wanted, and the file that is read now.
public struct ImportProgress: Equatable, Sendable {
    public let doneBytes: Int
    public let totalBytes: Int
    public let file: String
}

/// Brings a model into the store: its manifest, then only the files that one package needs.
///
/// Free space is looked at first. Each file is written to a partial folder, goes on from where it was at the next call, and
/// is compared with its size and SHA-256. The model appears by a rename, so one that is there is complete.
public struct BundleImport: Sendable {
    /// The name of the model's folder in the store.
    public let id: String
    private let source: URL
    private let store: BundleStore
    private let format: Package.Format
    private let transfer: any FileTransfer
    /// That is left free on the disk.
    private static let spareBytes = 16 << 20

    /// `source`: a folder, or the address of one, that has manifest.json. `transfer`: nil for the kit's own.
    public init(
        from source: URL, to store: BundleStore, format: Package.Format = .pte, transfer: (any FileTransfer)? = nil
    ) {
        (self.source, self.store, self.format) = (source, store, format)
        self.transfer = transfer ?? (source.isFileURL ? FolderTransfer() : WebTransfer())
        id = Self.id(of: source)
    }

    /// The last part of an address, as a name of a folder.
    static func id(of source: URL) -> String {
        let name = source.lastPathComponent == "/" ? source.host ?? "" : source.lastPathComponent
        let kept = name.unicodeScalars.filter { CharacterSet.alphanumerics.contains($0) || "._-".unicodeScalars.contains($0) }
        let id = String(String.UnicodeScalarView(kept)).drop { $0 == "." }
        return id.isEmpty ? "model" : String(id)
    }

    /// Runs the import; the model. Cancel the task to pause; call it again to go on. Throws BundleError; what came is kept,
    /// but for a file with a wrong SHA-256.
    public func run(progress: @escaping @Sendable (ImportProgress) -> Void = { _ in }) async throws -> ModelBundle {
        let work = store.partialFolder(of: id)
        let files = work.appendingPathComponent(PartialImport.filesName)
        try note(totalBytes: nil, in: work)
        let manifest = try await manifest(into: work, files)
        let entries = try manifest.files(for: format)
        let total = entries.reduce(0) { $0 + $1.byteCount }
        try note(totalBytes: total, in: work)
        try checkSpace(entries, files, total)
        var done = 0
        for entry in entries {
            let before = done
            try await bring(entry, to: files) {
                progress(ImportProgress(doneBytes: before + $0, totalBytes: total, file: entry.path))
            }
            done += entry.byteCount
        }
        try store.publish(files, as: id)
        return try ModelBundle.open(store.folder(of: id))
    }

    private func note(totalBytes: Int?, in work: URL) throws {
        let files = work.appendingPathComponent(PartialImport.filesName)
        try FileManager.default.createDirectory(at: files, withIntermediateDirectories: true)
        let partial = PartialImport(id: id, source: source, format: format, totalBytes: totalBytes)
        try JSONEncoder().encode(partial).write(to: work.appendingPathComponent(PartialImport.fileName), options: .atomic)
    }

    /// The manifest of the source. Files of another one that was begun here go.
    private func manifest(into work: URL, _ files: URL) async throws -> Manifest {
        let fresh = work.appendingPathComponent(Manifest.fileName)
        let kept = files.appendingPathComponent(Manifest.fileName)
        try Data().write(to: fresh)
        try await transfer.fetch(source.appendingPathComponent(Manifest.fileName), from: 0, appendingTo: fresh) { _ in }
        let data = try Data(contentsOf: fresh)
        let manifest = try Manifest(data: data)
        if (try? Data(contentsOf: kept)) != data {
            try FileManager.default.removeItem(at: files)
            try FileManager.default.createDirectory(at: files, withIntermediateDirectories: true)
            try data.write(to: kept, options: .atomic)
        }
        return manifest
    }

    private func checkSpace(_ entries: [FileEntry], _ files: URL, _ total: Int) throws {
        let present = entries.reduce(0) { sum, entry in
            sum + [entry.path, entry.path + Self.unfinished].reduce(0) { $0 + Self.size(files.appendingPathComponent($1)) }
        }
        let needed = total - present + Self.spareBytes, free = try store.freeBytes()
        guard free >= needed else {
            throw BundleError(
                .noSpace, "the model needs \(needed / 1_000_000 + 1) MB more, \(free / 1_000_000) MB are free",
                hint: "Free some space, then go on.")
        }
    }

    private static let unfinished = ".unfinished"

    private func bring(_ entry: FileEntry, to files: URL, progress: @escaping @Sendable (Int) -> Void) async throws {
        let whole = files.appendingPathComponent(entry.path)
        let partial = files.appendingPathComponent(entry.path + Self.unfinished)
        if FileManager.default.fileExists(atPath: whole.path) { return progress(entry.byteCount) }
        try FileManager.default.createDirectory(
            at: whole.deletingLastPathComponent(), withIntermediateDirectories: true)
        if !FileManager.default.fileExists(atPath: partial.path) {
            try Data().write(to: partial)
        }
        let offset = Self.size(partial)
        if offset < entry.byteCount {
            let url = source.appendingPathComponent(entry.path)
            try await transfer.fetch(url, from: offset, appendingTo: partial, progress: progress)
        }
        try check(entry, partial)
        try FileManager.default.moveItem(at: partial, to: whole)
        progress(entry.byteCount)
    }

    /// A file with another content goes, so that the next try begins anew.
    private func check(_ entry: FileEntry, _ partial: URL) throws {
        let count = Self.size(partial)
        if count < entry.byteCount {
            throw BundleError(
                .network, "\(entry.path) ended after \(count) of \(entry.byteCount) bytes",
                hint: "Go on: what came is kept.")
        }
        let isRight = count == entry.byteCount
        guard try isRight && SHA256Digest.of(partial, read: { _ in try Task.checkCancellation() }) == entry.sha256 else {
            try FileManager.default.removeItem(at: partial)
            throw BundleError(
                .damaged, "\(entry.path) has another \(isRight ? "SHA-256" : "size") than the manifest says",
                hint: "Load it again. If it happens again, the model was changed at its source.")
        }
    }

    private static func size(_ url: URL) -> Int {
        let attributes = try? FileManager.default.attributesOfItem(atPath: url.path)
        return (attributes?[.size] as? NSNumber)?.intValue ?? 0
    }
}
