import TinyQMoECore
import Foundation

/// What is wrong with a custom layer: which layer, and what to do.
public struct LayerError: LocalizedError, Equatable {
    public let layer: String
    public let problem: String

    public init(_ layer: String, _ problem: String) {
        self.layer = layer
        self.problem = problem
    }

    public var errorDescription: String? { "\(layer): \(problem)" }
}

/// Throws unless the core says that all is well; `doing` completes the sentence "while ...".
func check(_ status: tinyqmoe_status, layer: String, doing: String) throws {
    guard status != TINYQMOE_OK else { return }
    let name = String(cString: tinyqmoe_status_name(status))
    throw LayerError(layer, "\(name) while \(doing)")
}
