import TinyQMoECore

/// Why a call of the core failed, in words.
public struct SessionError: Error, CustomStringConvertible {
    public let description: String

    init(_ status: tinyqmoe_status, _ said: String = "") {
        let name = String(cString: tinyqmoe_status_name(status))
        description = said.isEmpty ? name : said
    }
}

/// A bundle that is open for text. An actor, since a session serves one thread at a time, and a prompt takes seconds.
public actor Session {
    private let handle: OpaquePointer
    private let vocab: Int

    /// Opens the bundle in a folder; 0 threads are as many as the device has cores. `verify` compares size and SHA-256
    /// of the package's files first: for the first time after a download.
    public init(folder: String, threads: UInt32 = 0, verify: Bool = false) throws {
        var options = tinyqmoe_session_options()
        options.struct_bytes = UInt64(MemoryLayout<tinyqmoe_session_options>.size)
        options.n_threads = threads
        options.verify = verify ? 1 : 0
        var opened: OpaquePointer?
        var said = [CChar](repeating: 0, count: 1000)
        let status = folder.withCString { path in
            options.bundle = path
            return tinyqmoe_session_open(&options, &opened, &said, UInt64(said.count))
        }
        guard status == TINYQMOE_OK, let opened else {
            let text = said.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
            throw SessionError(status, String(decoding: text, as: UTF8.self))
        }
        var state = tinyqmoe_session_state()
        state.struct_bytes = UInt64(MemoryLayout<tinyqmoe_session_state>.size)
        _ = tinyqmoe_session_stats(opened, &state)
        handle = opened
        vocab = Int(state.vocab)
    }

    deinit { tinyqmoe_session_close(handle) }

    /// Appends tokens, and returns the logits after the last of them.
    public func feed(_ tokens: [Int32]) throws -> [Float] {
        var logits = [Float](repeating: 0, count: vocab)
        let status = tinyqmoe_session_feed(handle, tokens, UInt32(tokens.count), &logits)
        guard status == TINYQMOE_OK else { throw SessionError(status) }
        return logits
    }

    /// Appends one token, and returns the one with the highest logit after it.
    public func step(_ token: Int32) throws -> Int32 {
        var best: Int32 = 0
        let status = tinyqmoe_session_step(handle, token, &best, nil)
        guard status == TINYQMOE_OK else { throw SessionError(status) }
        return best
    }

    /// Forgets all positions from `positions` on: to say a turn again, or with 0 to begin anew.
    public func rewind(to positions: UInt32) throws {
        let status = tinyqmoe_session_trim(handle, positions)
        guard status == TINYQMOE_OK else { throw SessionError(status) }
    }

    /// For memory warnings, from any thread, also while a session computes. Returns the bytes that were freed.
    @discardableResult
    public static func freeMemory(_ bytes: UInt64 = .max) -> UInt64 {
        var freed: UInt64 = 0
        tinyqmoe_trim(bytes, &freed)
        return freed
    }
}
