import Foundation
import LZWKit

/// A model that is loaded: what the view models ask of a session.
public struct LoadedModel: Sendable {
    public typealias Replies = AsyncThrowingStream<Reply, any Error>

    public let manifest: Manifest
    public let takesSystemPrompt: Bool
    public let reply: @Sendable ([Message], Sampling, _ maxNewTokens: Int) -> Replies
    public let setPause: @Sendable (Duration) async -> Void
    public let close: @Sendable () async -> Void
    /// "Check this model", as a report.
    public let check: @Sendable (_ progress: @escaping @Sendable (Int, Int) -> Void) async throws -> CheckReport

    public init(
        manifest: Manifest,
        takesSystemPrompt: Bool,
        reply: @escaping @Sendable ([Message], Sampling, Int) -> Replies,
        setPause: @escaping @Sendable (Duration) async -> Void = { _ in },
        close: @escaping @Sendable () async -> Void = {},
        check: @escaping @Sendable (@escaping @Sendable (Int, Int) -> Void) async throws -> CheckReport
    ) {
        (self.manifest, self.takesSystemPrompt) = (manifest, takesSystemPrompt)
        (self.reply, self.setPause, self.close, self.check) = (reply, setPause, close, check)
    }

    /// A session of a bundle; `device` is named in the report of a check.
    public init(_ session: Session, of bundle: ModelBundle, _ format: Package.Format, device: String) {
        self.init(
            manifest: session.manifest,
            takesSystemPrompt: session.manifest.chat.takesSystemPrompt,
            reply: { session.reply(to: $0, sampling: $1, maxNewTokens: $2) },
            setPause: { await session.setPause($0) },
            // Where something is still computed, the memory goes with the last reference to the session.
            close: { try? await session.close() },
            check: { progress in
                try await ModelCheck(bundle, format: format, device: device).run(on: session, progress: progress)
            })
    }
}
