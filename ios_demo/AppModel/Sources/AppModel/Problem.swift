import Foundation
import LZWKit

/// Something that went wrong, for the user: what, and what to do.
public struct Problem: Equatable, Identifiable, Sendable {
    /// Which title the screen gives it.
    public enum Kind: String, CaseIterable, Sendable {
        case memory, crashedLastTime, network, damaged, other
    }

    public let id = UUID()
    public let kind: Kind
    public let what: String
    public let hint: String

    public init(_ kind: Kind, _ what: String, hint: String) {
        (self.kind, self.what, self.hint) = (kind, what, hint)
    }

    public init(_ error: any Error) {
        let localized = error as? any LocalizedError
        kind = (error as? BundleError).map { Self.kind(of: $0.kind) } ?? .other
        what = localized?.errorDescription ?? error.localizedDescription
        hint = localized?.recoverySuggestion ?? ""
    }

    public static func == (a: Problem, b: Problem) -> Bool { (a.kind, a.what, a.hint) == (b.kind, b.what, b.hint) }

    private static func kind(of kind: BundleError.Kind) -> Kind {
        switch kind {
        case .outOfMemory: .memory
        case .network: .network
        case .damaged, .changed, .notValid, .missing: .damaged
        default: .other
        }
    }
}
