import Foundation

/// The flag of a load that has not finished: so that a model whose load killed the app isn't loaded by itself again.
public struct LoadGuard: Sendable {
    private let file: URL

    /// `file`: where the flag lies between two starts of the app.
    public init(file: URL) { self.file = file }

    /// Notes, on disk, that a model is being loaded.
    public func begin(_ model: String) throws { try Data(model.utf8).write(to: file, options: .atomic) }

    /// The load ended, well or with an error that was shown.
    public func finished() { try? FileManager.default.removeItem(at: file) }

    /// The model whose load ended with the app; nil if none did.
    public func crashedLast() -> String? {
        (try? Data(contentsOf: file)).flatMap { $0.isEmpty ? nil : String(decoding: $0, as: UTF8.self) }
    }
}
