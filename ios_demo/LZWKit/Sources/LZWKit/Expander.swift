import Foundation

/// Rebuilds a Core ML program from its coded weights, byte for byte as it was exported, as `tinyqmoe expand` does.
///
/// It works in `.NAME.partial` beside the target, from which the package goes to its place by a rename when it is complete:
/// the app may be ended at any moment. An interrupted expansion goes on from the last whole piece; its bytes are hashed
/// again, not trusted.
public struct Expander: Sendable {
    private let bundle: ModelBundle
    private let recipe: Recipe
    private static let spareBytes = 16 << 20
    /// What every package has: that of the target tells whether it is this one.
    private static let mark = "Manifest.json"

    /// Throws BundleError for a bundle without an ML program, or with a recipe that is not valid.
    public init(_ bundle: ModelBundle) throws {
        _ = try bundle.manifest.files(for: .mlprogram, check: false)
        let name = bundle.manifest.package(.mlprogram)!.details["recipe"]?.string ?? ""
        guard let data = try? Data(contentsOf: bundle.file(name)) else {
            throw BundleError(.missing, "the recipe \(name) is missing", hint: "Load the model again.")
        }
        (self.bundle, recipe) = (bundle, try Recipe(data: data))
    }

    /// Where the package lies if no other target is given.
    public var defaultTarget: URL { bundle.file(recipe.package) }

    /// Builds the package at `target`, and replaces it if it is there. `progress` is told bytes done and in all. Blocks; ends
    /// within a block of 4 MB when its task is cancelled. Throws BundleError.
    public func run(to target: URL, progress: @Sendable (Int, Int) -> Void = { _, _ in }) throws {
        let files = FileManager.default
        let work = target.deletingLastPathComponent().appendingPathComponent(".\(target.lastPathComponent).partial")
        let package = work.appendingPathComponent("new"), template = bundle.file(recipe.template)
        try checkPlaces(template, target, work)
        try checkSpace(package, target)
        guard let coded = try? Data(contentsOf: bundle.file(recipe.codedFile), options: .alwaysMapped) else {
            throw BundleError(.missing, "\(recipe.codedFile) is missing", hint: "Load the model again.")
        }
        try copy(template, to: package)
        var done = 0
        for file in recipe.weightFiles {
            try expand(file, coded, package.appendingPathComponent(file.path)) {
                try Task.checkCancellation()
                done += $0
                progress(done, recipe.totalBytes)
            }
        }
        if files.fileExists(atPath: target.path) {
            let old = work.appendingPathComponent("old")
            try? files.removeItem(at: old)
            try files.moveItem(at: target, to: old)
        }
        try files.moveItem(at: package, to: target)
        try files.removeItem(at: work)
    }

    /// A bundle may come from a stranger: no link is followed, and no other package is replaced. Throws BundleError.
    private func checkPlaces(_ template: URL, _ target: URL, _ work: URL) throws {
        let links = [bundle.file(recipe.codedFile), template, target, work].flatMap(Self.links)
        guard links.isEmpty else {
            throw BundleError(
                .damaged, "there are links where an expansion reads or writes", problems: links.map(\.path),
                hint: "Remove them, or load the model again.")
        }
        let files = FileManager.default
        guard files.fileExists(atPath: template.appendingPathComponent(Self.mark).path) else {
            throw BundleError(.missing, "\(recipe.template) is missing", hint: "Load the model again.")
        }
        let marks = [template, target].map { $0.appendingPathComponent(Self.mark).path }
        if files.fileExists(atPath: target.path), !files.contentsEqual(atPath: marks[0], andPath: marks[1]) {
            throw BundleError(
                .notSupported, "\(target.lastPathComponent) is there and is another package", hint: "Choose another place.")
        }
    }

    private static func links(_ url: URL) -> [URL] {
        func isLink(_ url: URL) -> Bool {
            (try? FileManager.default.attributesOfItem(atPath: url.path))?[.type] as? FileAttributeType == .typeSymbolicLink
        }
        if isLink(url) { return [url] }
        let inside = FileManager.default.enumerator(at: url, includingPropertiesForKeys: nil)
        return inside?.compactMap { $0 as? URL }.filter(isLink) ?? []
    }

    private func checkSpace(_ package: URL, _ target: URL) throws {
        let present = recipe.weightFiles.reduce(0) { $0 + Self.size(package.appendingPathComponent($1.path)) }
        let needed = recipe.totalBytes - present + Self.spareBytes
        let folder = target.deletingLastPathComponent().path
        let attributes = try FileManager.default.attributesOfFileSystem(forPath: folder)
        let free = (attributes[.systemFreeSize] as? NSNumber)?.intValue ?? 0
        guard free >= needed else {
            throw BundleError(
                .noSpace, "the package needs \(needed / 1_000_000 + 1) MB more, \(free / 1_000_000) MB are free",
                hint: "Free some space, then go on.")
        }
    }

    private static func size(_ url: URL) -> Int {
        ((try? FileManager.default.attributesOfItem(atPath: url.path))?[.size] as? NSNumber)?.intValue ?? 0
    }

    /// Copies the files of the template that are not there, or cut.
    private func copy(_ template: URL, to package: URL) throws {
        let files = FileManager.default
        try files.createDirectory(at: package, withIntermediateDirectories: true)
        for path in try files.subpathsOfDirectory(atPath: template.path) {
            let from = template.appendingPathComponent(path), to = package.appendingPathComponent(path)
            if try from.resourceValues(forKeys: [.isDirectoryKey]).isDirectory == true {
                try files.createDirectory(at: to, withIntermediateDirectories: true)
            } else {
                try Data(contentsOf: from, options: .alwaysMapped).write(to: to)
            }
        }
    }

    private func expand(_ file: Recipe.WeightFile, _ coded: Data, _ path: URL, advance: (Int) throws -> Void) throws {
        let files = FileManager.default
        try files.createDirectory(at: path.deletingLastPathComponent(), withIntermediateDirectories: true)
        if !files.fileExists(atPath: path.path) { try Data().write(to: path) }
        let output = try FileHandle(forUpdating: path)
        defer { try? output.close() }
        let present = Int(try output.seekToEnd())
        try output.seek(toOffset: 0)
        var digest = SHA256Digest(), end = 0
        for piece in file.pieces {
            end += piece.byteCount
            if end <= present {
                try hashAgain(piece.byteCount, of: output, into: &digest, advance: advance)
                continue
            }
            try PieceExpansion(piece, coded, file: recipe.codedFile).blocks { block in
                digest.update(block)
                try output.write(contentsOf: Data(block))
                try advance(block.count)
            }
        }
        try output.truncate(atOffset: UInt64(end))
        try output.synchronize()
        guard digest.finish() == file.sha256 else {
            try files.removeItem(at: path)  // so that the next try begins anew
            throw BundleError(
                .damaged, "\(file.path) was rebuilt with another SHA-256 than it was exported with",
                hint: "Try again. If it fails again, load the model again.")
        }
    }

    private func hashAgain(
        _ count: Int, of file: FileHandle, into digest: inout SHA256Digest, advance: (Int) throws -> Void
    ) throws {
        var left = count
        while left > 0, let block = try file.read(upToCount: min(left, 1 << 20)), !block.isEmpty {
            block.withUnsafeBytes { digest.update($0) }
            left -= block.count
            try advance(block.count)
        }
    }
}
