import Foundation

/// What is wrong, with which file, and what to do. Every error of the kit that a user may see is one.
public struct BundleError: LocalizedError, Equatable, Sendable {
    public enum Kind: Sendable {
        case notABundle, otherVersion, changed, notValid, missing, damaged
        case noSpace, network, notSupported, contextFull, busy, outOfMemory, core
    }

    public let kind: Kind
    /// A sentence without a full stop: what is wrong.
    public let what: String
    /// Everything that is wrong, where it is more than one thing.
    public let problems: [String]
    /// A next step that works.
    public let hint: String

    public init(_ kind: Kind, _ what: String, problems: [String] = [], hint: String) {
        (self.kind, self.what, self.problems, self.hint) = (kind, what, problems, hint)
    }

    public var errorDescription: String? { ([what] + problems).joined(separator: "\n") }
    public var recoverySuggestion: String? { hint }
}
