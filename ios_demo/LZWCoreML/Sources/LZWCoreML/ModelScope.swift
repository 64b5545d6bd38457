import Foundation

/// What the custom layers of one model share: the folder of the bundle, and matrices by name.
///
/// Core ML makes layers by their class name and tells them nothing of their model. So a model is loaded
/// inside `loading`, one at a time, and layers made meanwhile belong to its scope.
public final class ModelScope: @unchecked Sendable {
    private static let loadLock = NSLock()  // held through a load
    private static let currentLock = NSLock()
    nonisolated(unsafe) private static var current: ModelScope?

    private let folder: URL
    private let lock = NSLock()
    private var matrices: [String: CodedMatrix] = [:]
    private var files: [String: PinnedBytes] = [:]  // mapped once, for all layers
    private var problem: LayerError?

    public init(folder: URL) { self.folder = folder }

    /// Runs `body`, which loads a model and calls it once: Core ML may make layers as late as that.
    /// Blocks its thread. What layers found wrong is thrown in place of what Core ML makes of it.
    public func loading<Value>(_ body: () throws -> Value) throws -> Value {
        try Self.loadLock.withLock {
            Self.currentLock.withLock { Self.current = self }
            defer { Self.currentLock.withLock { Self.current = nil } }
            do { return try body() } catch { throw takeProblem() ?? error }
        }
    }

    /// The scope of the model that is being loaded.
    static func ofTheLoad(layer: String) throws -> ModelScope {
        guard let scope = currentLock.withLock({ current }) else {
            throw LayerError(layer, "it was made outside of ModelScope.loading")
        }
        return scope
    }

    /// Keeps the error of a layer: Core ML's own says less.
    func noting<Value>(_ body: () throws -> Value) throws -> Value {
        do { return try body() } catch let problem as LayerError {
            lock.withLock { self.problem = self.problem ?? problem }
            throw problem
        }
    }

    /// The first error of a layer since this was asked last.
    func takeProblem() -> LayerError? {
        lock.withLock {
            defer { problem = nil }
            return problem
        }
    }

    /// Opens the weights that Core ML hands to a layer.
    func open(_ parameters: LayerParameters, data: [Data]) throws -> CodedMatrix {
        guard data.count == 2 else {
            throw LayerError(parameters.name, "it has \(data.count) weights, expected a blob and scales")
        }
        return try open(parameters, blob: PinnedBytes(data[0]), scales: PinnedBytes(data[1]))
    }

    /// Opens the weights of a layer that has them in a file of the bundle; nil for other layers.
    func openFromFile(_ parameters: LayerParameters) throws -> CodedMatrix? {
        guard case .file(let file, let blob, let scales) = parameters.weights else { return nil }
        let mapped = try map(file, for: parameters.name)
        guard let blob = mapped.part(blob), let scales = mapped.part(scales) else {
            throw LayerError(parameters.name, "its place in \(file) is past the file's end; import the model again")
        }
        return try open(parameters, blob: blob, scales: scales)
    }

    /// The matrix of the layer whose weights another one shares.
    func shared(_ parameters: LayerParameters) throws -> CodedMatrix {
        guard case .sharedWith(let name) = parameters.weights else {
            throw LayerError(parameters.name, "Core ML gave it no weights")
        }
        guard let matrix = lock.withLock({ matrices[name] }) else {
            throw LayerError(parameters.name, "it uses the weights of \(name), but no layer of that name has any")
        }
        try require(matrix, parameters)
        return matrix
    }

    private func open(
        _ parameters: LayerParameters, blob: PinnedBytes, scales: PinnedBytes
    ) throws -> CodedMatrix {
        let matrix = try CodedMatrix(parameters, blob: blob, scales: scales)
        try require(matrix, parameters)
        lock.withLock { matrices[matrix.name] = matrix }
        return matrix
    }

    private func require(_ matrix: CodedMatrix, _ parameters: LayerParameters) throws {
        let found = [matrix.rows, matrix.cols, matrix.groupSize, matrix.scaleType.bytes]
        let said = [parameters.rows, parameters.cols, parameters.groupSize, parameters.scaleType.bytes]
        guard found == said else {
            throw LayerError(
                parameters.name,
                "its matrix has rows, columns, group size and bytes of a scale \(found), its parameters say \(said)")
        }
    }

    private func map(_ file: String, for layer: String) throws -> PinnedBytes {
        let parts = file.split(separator: "/", omittingEmptySubsequences: false)
        let isInside = parts.allSatisfy { !$0.isEmpty && $0 != ".." } && !file.contains("\\")
        guard isInside else { throw LayerError(layer, "its weights are in \"\(file)\", outside of the bundle") }
        return try lock.withLock {
            if let known = files[file] { return known }
            guard let data = try? Data(contentsOf: folder.appendingPathComponent(file), options: .alwaysMapped) else {
                throw LayerError(layer, "its weights are in \(file), which cannot be read; import the model again")
            }
            let mapped = PinnedBytes(data)
            files[file] = mapped
            return mapped
        }
    }
}
