import Foundation
import TinyQMoECore

/// What an engine holds and took.
public struct EngineState: Equatable, Sendable {
    /// Positions held now.
    public var positions = 0
    public var context = 0
    public var vocab = 0
    /// Of the files with weights: clean pages.
    public var mappedBytes = 0
    public var kvCacheBytes = 0
    /// All other memory of size.
    public var bufferBytes = 0
    /// Tokens since the engine was opened, and the seconds they took.
    public var tokensFed = 0
    public var feedSeconds = 0.0

    public init() {}
}

/// A program that turns tokens into logits and keeps a KV cache. It serves one thread at a time: hand it to a `Session`.
public protocol Engine: AnyObject {
    /// Appends tokens; the logits after the last of them if they are asked for, else an empty array, which is faster.
    /// On failure no position was added. Throws BundleError or CoreError.
    func feed(_ tokens: [Int32], logits: Bool) throws -> [Float]
    /// Appends one token; the token with the highest logit, of equals the first.
    func step(_ token: Int32) throws -> Int32
    /// Forgets all positions from `positions` on.
    func trim(to positions: Int) throws
    var state: EngineState { get }
    /// Gives all memory back; nothing can be called afterwards.
    func close()
}

extension Engine {
    public func step(_ token: Int32) throws -> Int32 {
        let logits = try feed([token], logits: true)
        return Int32(logits.indices.reduce(0) { logits[$1] > logits[$0] ? $1 : $0 })
    }
}

/// A session of the C++ core, without Core ML.
public final class NativeEngine: Engine {
    /// What computes, by the numbers of tinyqmoe_engine: both have the same bits.
    public enum Kind: UInt32, Sendable {
        /// The core's own runner, which needs nothing.
        case runner
        /// The program itself, where the app links ExecuTorch. `context` and `threads` are 0.
        case executorch
    }

    public struct Options: Sendable {
        /// Positions of the cache; 0: the bundle's, which is also the most.
        public var context = 0
        /// 0: as many as the machine has.
        public var threads = 0
        /// Most tokens that are computed at once; 0: 128.
        public var batchTokens = 0
        public var kind = Kind.runner
        public init() {}
    }

    private var handle: OpaquePointer?

    /// Maps the weights of a bundle and allocates the cache. Throws BundleError with what is wrong.
    public init(_ bundle: ModelBundle, options: Options = Options()) throws {
        var error = [CChar](repeating: 0, count: 1024)
        let status = bundle.folder.path.withCString { path in
            var native = tinyqmoe_session_options()
            native.struct_bytes = UInt64(MemoryLayout<tinyqmoe_session_options>.size)
            native.bundle = path
            native.context = UInt32(options.context)
            native.n_threads = UInt32(options.threads)
            native.batch_tokens = UInt32(options.batchTokens)
            native.engine = tinyqmoe_engine(rawValue: options.kind.rawValue)
            return tinyqmoe_session_open(&native, &handle, &error, UInt64(error.count))
        }
        guard status == TINYQMOE_OK else {
            let said = error.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
            let what = String(decoding: said, as: UTF8.self)
            let (kind, hint) = Self.refusal(status)
            throw BundleError(kind, what.isEmpty ? CoreError(status).errorDescription! : what, hint: hint)
        }
    }

    private static func refusal(_ status: tinyqmoe_status) -> (BundleError.Kind, hint: String) {
        switch status {
        case TINYQMOE_OUT_OF_MEMORY: (.outOfMemory, "Close other apps, or choose a smaller model.")
        case TINYQMOE_BAD_ARGUMENT: (.notSupported, "Open it with other options.")
        default: (.damaged, "Load the model again.")
        }
    }

    deinit { close() }

    public func feed(_ tokens: [Int32], logits: Bool) throws -> [Float] {
        let handle = try opened()
        guard logits else {
            try check(tinyqmoe_session_feed(handle, tokens, UInt32(tokens.count), nil))
            return []
        }
        let vocab = state.vocab
        return try [Float](unsafeUninitializedCapacity: vocab) { buffer, count in
            try check(tinyqmoe_session_feed(handle, tokens, UInt32(tokens.count), buffer.baseAddress))
            count = vocab
        }
    }

    public func step(_ token: Int32) throws -> Int32 {
        var best: Int32 = 0
        try check(tinyqmoe_session_step(opened(), token, &best, nil))
        return best
    }

    public func trim(to positions: Int) throws {
        try check(tinyqmoe_session_trim(opened(), UInt32(positions)))
    }

    public var state: EngineState {
        var native = tinyqmoe_session_state()
        native.struct_bytes = UInt64(MemoryLayout<tinyqmoe_session_state>.size)
        var state = EngineState()
        guard let handle, tinyqmoe_session_stats(handle, &native) == TINYQMOE_OK else { return state }
        state.positions = Int(native.n_positions)
        state.context = Int(native.context)
        state.vocab = Int(native.vocab)
        state.mappedBytes = Int(native.mapped_bytes)
        state.kvCacheBytes = Int(native.kv_cache_bytes)
        state.bufferBytes = Int(native.buffer_bytes)
        state.tokensFed = Int(native.n_fed)
        state.feedSeconds = Double(native.feed_ns) / 1e9
        return state
    }

    public func close() {
        tinyqmoe_session_close(handle)
        handle = nil
    }

    private func opened() throws -> OpaquePointer {
        guard let handle else {
            throw BundleError(.notSupported, "the model was unloaded", hint: "Load it again.")
        }
        return handle
    }
}
