import Foundation

/// Why an answer ended.
public enum Ending: String, Codable, Sendable {
    /// The model said so.
    case end
    /// The limit of tokens was reached.
    case limit
    /// The context is full.
    case context
}

/// Figures of an answer, while it comes and after it.
public struct SessionStats: Equatable, Sendable {
    public var promptTokens = 0
    /// Tokens of the prompt that the cache held already.
    public var reusedTokens = 0
    public var answerTokens = 0
    /// From the question to the first token; nil before it.
    public var secondsToFirstToken: Double?
    /// Of the tokens after the first; nil before the second.
    public var tokensPerSecond: Double?
    public var engine = EngineState()

    public init() {}
}

/// What comes while an answer is computed.
public enum Reply: Equatable, Sendable {
    /// The oldest messages found no room in the context and were left out; `words` says so. Comes first, if at all.
    case dropped(messages: Int, words: String)
    /// How much of the prompt was read, in tokens.
    case reading(done: Int, total: Int)
    /// The next characters of the answer, and the figures so far.
    case text(String, SessionStats)
    /// Comes last.
    case done(Ending, SessionStats)
}

/// A model that converses: an engine with its tokenizer and chat format, on a thread of its own.
///
/// The KV cache is kept between answers as far as the conversations agree, so a turn costs its own tokens.
public actor Session {
    public nonisolated let manifest: Manifest
    /// Pause after each token, for a device that is hot.
    public var pause: Duration = .zero

    private let tokenizer: Tokenizer
    private let engine: any Engine
    private let executor = EngineExecutor()
    private var held: [Int32] = []
    private var current: Turn?
    private var waiting: [CheckedContinuation<Void, Never>] = []
    /// Tokens of a prompt that are read between two looks at a cancellation.
    private let batchTokens = 32

    public nonisolated var unownedExecutor: UnownedSerialExecutor { executor.asUnownedSerialExecutor() }

    /// The engine belongs to the session from here on.
    public init(manifest: Manifest, tokenizer: Tokenizer, engine: sending any Engine) {
        (self.manifest, self.tokenizer, self.engine) = (manifest, tokenizer, engine)
    }

    /// Opens a bundle with the session of the core. Takes seconds at most. Throws BundleError.
    public static func open(_ bundle: ModelBundle, options: NativeEngine.Options = .init()) async throws -> Session {
        try bundle.verify(.pte, check: false)
        let tokenizer = try bundle.tokenizer()
        return Session(manifest: bundle.manifest, tokenizer: tokenizer, engine: try NativeEngine(bundle, options: options))
    }

    /// The answer to a conversation that ends with a user's message. Stop by cancelling the task that reads, or by leaving
    /// the loop: it takes effect within a token, or a batch of the prompt.
    ///
    /// The oldest turns are left out where the context is full; the system prompt stays. A model without a chat format goes
    /// on with the text of the last message. An answer that was stopped is waited for. Throws BundleError; `.busy` while
    /// another is written.
    public nonisolated func reply(
        to messages: [Message], sampling: Sampling = .greedy, maxNewTokens: Int = 512, date: Date = Date()
    ) -> AsyncThrowingStream<Reply, Error> {
        AsyncThrowingStream { continuation in
            let turn = Turn()
            let task = Task {
                do {
                    try await answer(messages, sampling, maxNewTokens, date, turn) { continuation.yield($0) }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in
                turn.cancel()
                task.cancel()
            }
        }
    }

    public func setPause(_ pause: Duration) { self.pause = pause }

    /// Memory and positions of the engine.
    public func engineState() -> EngineState { engine.state }

    /// Runs something with the engine, on its thread; what it held is forgotten. Throws BundleError `.busy` while an answer
    /// is computed.
    public func withEngine<Result: Sendable>(
        _ body: @Sendable (any Engine) throws -> Result
    ) async throws -> Result {
        try await begin(Turn())
        defer { end() }
        held = []
        try engine.trim(to: 0)
        return try body(engine)
    }

    /// Gives the memory back. An answer that was stopped is waited for; throws BundleError `.busy` while one is written.
    public func close() async throws {
        try await begin(Turn())
        defer { end() }
        engine.close()
        held = []
    }

    /// The engine is that of `turn` until `end`.
    private func begin(_ turn: Turn) async throws {
        while let current {
            guard current.isCancelled else {
                throw BundleError(.busy, "an answer is being written", hint: "Wait for it, or stop it.")
            }
            await withCheckedContinuation { waiting.append($0) }
        }
        current = turn
    }

    private func end() {
        current = nil
        waiting.forEach { $0.resume() }
        waiting = []
    }

    private func answer(
        _ messages: [Message], _ sampling: Sampling, _ maxNewTokens: Int, _ date: Date, _ turn: Turn,
        _ tell: @Sendable (Reply) -> Void
    ) async throws {
        let asked = ContinuousClock.now
        try await begin(turn)
        defer { end() }
        let prompt = try Prompt.fitting(messages, manifest, tokenizer, maxNewTokens: maxNewTokens, date: date)
        if prompt.dropped > 0 { tell(.dropped(messages: prompt.dropped, words: prompt.words)) }
        var stats = SessionStats()
        stats.promptTokens = prompt.tokens.count
        stats.reusedTokens = try forget(keeping: prompt.tokens)
        try await read(prompt.tokens) { tell(.reading(done: $0, total: prompt.tokens.count)) }

        var sampler = Sampler(sampling)
        var generation = Generation(asked: asked, stream: TextStream(tokenizer), stats: stats)
        var token = prompt.tokens.last!
        let room = manifest.interface.context - prompt.tokens.count + 1
        let limit = min(maxNewTokens, room)
        var ending = limit < maxNewTokens ? Ending.context : .limit
        while generation.count < limit {
            try Task.checkCancellation()
            token = try next(after: token, &sampler)
            if manifest.interface.eosTokenIds.contains(Int(token)) {
                ending = .end
                break
            }
            if let piece = generation.piece(token, engine.state) { tell(piece) }
            if pause > .zero { try await Task.sleep(for: pause) } else { await Task.yield() }
        }
        if let rest = generation.rest() { tell(rest) }
        tell(.done(ending, generation.stats))
    }

    /// Keeps what the cache has in common with a prompt, of which the last token is computed anew.
    private func forget(keeping tokens: [Int32]) throws -> Int {
        let common = zip(held, tokens.dropLast()).prefix { $0 == $1 }.count
        held.removeLast(held.count - common)
        try engine.trim(to: common)
        return common
    }

    /// Reads all of a prompt but its last token, in batches.
    private func read(_ tokens: [Int32], progress: (Int) -> Void) async throws {
        while held.count < tokens.count - 1 {
            try Task.checkCancellation()
            let batch = Array(tokens[held.count..<min(held.count + batchTokens, tokens.count - 1)])
            _ = try engine.feed(batch, logits: false)
            held += batch
            progress(held.count)
            await Task.yield()
        }
    }

    private func next(after token: Int32, _ sampler: inout Sampler) throws -> Int32 {
        let best: Int32
        if sampler.sampling.isGreedy {
            best = try engine.step(token)
        } else {
            best = sampler.choose(try engine.feed([token], logits: true))
        }
        held.append(token)
        return best
    }
}

/// The thread of a session: products take long, and must not hold a thread that other tasks wait for.
private final class EngineExecutor: SerialExecutor {
    private let queue = DispatchQueue(label: "com.tinyqmoe.session", qos: .userInitiated)

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        let executor = asUnownedSerialExecutor()
        queue.async { job.runSynchronously(on: executor) }
    }
}

/// Who uses the engine, and whether that was stopped.
private final class Turn: @unchecked Sendable {
    private let lock = NSLock()
    private var wasCancelled = false

    var isCancelled: Bool { lock.withLock { wasCancelled } }
    func cancel() { lock.withLock { wasCancelled = true } }
}

/// The tokens of an answer that is being computed, as text and figures.
private struct Generation {
    let asked: ContinuousClock.Instant
    var stream: TextStream
    var stats: SessionStats
    var first: ContinuousClock.Instant?
    var count = 0

    /// The characters that a token completes.
    mutating func piece(_ token: Int32, _ engine: EngineState) -> Reply? {
        let now = ContinuousClock.now
        count += 1
        stats.answerTokens = count
        if let first {
            stats.tokensPerSecond = Double(count - 1) / max(first.duration(to: now).seconds, 1e-9)
        } else {
            first = now
            stats.secondsToFirstToken = asked.duration(to: now).seconds
        }
        stats.engine = engine
        let text = stream.step(token)
        return text.isEmpty ? nil : .text(text, stats)
    }

    /// What no token completed.
    mutating func rest() -> Reply? {
        let text = stream.rest()
        return text.isEmpty ? nil : .text(text, stats)
    }
}

extension Duration {
    fileprivate var seconds: Double { Double(components.seconds) + Double(components.attoseconds) * 1e-18 }
}
