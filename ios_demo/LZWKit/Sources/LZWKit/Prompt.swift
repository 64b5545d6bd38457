import Foundation

/// Token ids of a conversation that leave room for the answer.
struct Prompt: Equatable {
    let tokens: [Int32]
    /// Messages that were left out.
    let dropped: Int

    var words: String {
        "The conversation is longer than the model's context: its oldest \(dropped) messages were left out."
    }

    /// Leaves out turns from the oldest on, until the new tokens find room, of which at most a quarter of the context is
    /// kept free. Throws BundleError where the last message alone is too long.
    static func fitting(
        _ messages: [Message], _ manifest: Manifest, _ tokenizer: Tokenizer, maxNewTokens: Int, date: Date
    ) throws -> Prompt {
        let context = manifest.interface.context
        let room = context - min(maxNewTokens, context / 4)
        let system = messages.prefix { $0.role == .system }
        var turns = messages.dropFirst(system.count)
        while true {
            let tokens = try encode(system + turns, manifest, tokenizer, date)
            if tokens.count <= room || (turns.count == 1 && tokens.count <= context) {
                return Prompt(tokens: tokens, dropped: messages.count - system.count - turns.count)
            }
            guard turns.count > 1 else {
                throw BundleError(
                    .contextFull, "the message has \(tokens.count) tokens, the model's context has room for \(context)",
                    hint: "Shorten it or the system prompt.")
            }
            turns = turns.dropFirst().drop { $0.role == .assistant }
        }
    }

    private static func encode(
        _ messages: ArraySlice<Message>, _ manifest: Manifest, _ tokenizer: Tokenizer, _ date: Date
    ) throws -> [Int32] {
        let ids =
            manifest.chat.chats
            ? tokenizer.encode(try manifest.chat.render(Array(messages), date: date))
            : tokenizer.encodePrompt(messages.last?.content ?? "")
        guard !ids.isEmpty else { throw BundleError(.notSupported, "the question is empty", hint: "Write one.") }
        if let bad = ids.first(where: { $0 >= manifest.interface.vocabSize }) {
            throw BundleError(
                .notValid, "the tokenizer gives id \(bad), the model knows \(manifest.interface.vocabSize)",
                hint: "Export the model again with its own tokenizer.")
        }
        return ids
    }
}
