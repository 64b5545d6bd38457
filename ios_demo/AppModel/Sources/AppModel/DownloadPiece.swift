import Foundation
import LZWKit

/// What a download adds to a partial file: all that follows `offset`. Its description survives the app, so that a piece
/// that comes while the app is away finds its place.
public struct DownloadPiece: Equatable, Sendable {
    public let offset: Int
    private let path: String
    private let root: URL

    /// `partial` is a file in a folder under `root`.
    public init(of partial: URL, under root: URL, offset: Int) {
        let base = root.standardizedFileURL.path + "/"
        let whole = partial.standardizedFileURL.path
        path = whole.hasPrefix(base) ? String(whole.dropFirst(base.count)) : partial.lastPathComponent
        (self.root, self.offset) = (root, offset)
    }

    /// Of a description; nil for another text.
    public init?(_ description: String?, under root: URL) {
        let parts = (description ?? "").split(separator: " ", maxSplits: 1)
        guard parts.count == 2, let offset = Int(parts[0]), offset >= 0, !parts[1].contains("..") else { return nil }
        (self.offset, path, self.root) = (offset, String(parts[1]), root)
    }

    public var description: String { "\(offset) \(path)" }

    private var partial: URL { root.appendingPathComponent(path) }
    private var resumeFile: URL { partial.appendingPathExtension("resume") }

    /// Adds a file that was downloaded, which goes. Status 206 is what was asked for, 200 the whole file.
    /// Throws BundleError for another status, and where the partial file is no longer the one that was to be continued.
    public func add(_ downloaded: URL, status: Int) throws {
        let files = FileManager.default
        defer { try? files.removeItem(at: downloaded) }
        guard status == 200 || (status == 206 && offset > 0) else {
            throw BundleError(
                .network, "the server answers \(path) with HTTP \(status)",
                hint: "Look at the address: it is that of the folder with manifest.json.")
        }
        let output = try FileHandle(forWritingTo: partial)
        defer { try? output.close() }
        let begin = status == 200 ? 0 : offset
        guard try output.seekToEnd() >= UInt64(begin) else {
            throw BundleError(.network, "\(path) has changed meanwhile", hint: "Go on: it is read anew.")
        }
        try output.truncate(atOffset: UInt64(begin))
        let input = try FileHandle(forReadingFrom: downloaded)
        defer { try? input.close() }
        while let block = try input.read(upToCount: 1 << 20), !block.isEmpty { try output.write(contentsOf: block) }
    }

    /// Keeps what the system needs to go on with a download that was ended.
    public func keep(resumeData: Data) { try? resumeData.write(to: resumeFile, options: .atomic) }

    /// That, once; nil where there is none.
    public func takeResumeData() -> Data? {
        defer { try? FileManager.default.removeItem(at: resumeFile) }
        return try? Data(contentsOf: resumeFile)
    }
}
