import Foundation
import LZWKit
import Observation

/// The conversations, and the answer that is being written.
///
/// Everything but an answer works while a model is loading, or without one. A second tap finds nothing to do.
@MainActor @Observable
public final class ChatModel {
    public enum Phase: Equatable, Sendable {
        case idle
        /// Tokens of the prompt that were read.
        case reading(done: Int, total: Int)
        case writing
    }

    public private(set) var list: [Conversation] = []
    public private(set) var current: Conversation
    public private(set) var phase = Phase.idle
    /// What was written so far.
    public private(set) var answer = ""
    /// Sentences about this conversation: turns that were left out, why an answer ended.
    public private(set) var notes: [String] = []
    public private(set) var stats: SessionStats?
    public var problem: Problem?

    /// Told `.generationStarted` and `.generationEnded`.
    @ObservationIgnored public var tell: (PolicyEvent) -> Void = { _ in }
    @ObservationIgnored private let conversations: Conversations
    @ObservationIgnored private let settings: SettingsModel
    @ObservationIgnored private let host: ModelHost
    @ObservationIgnored private var answering: Task<Void, Never>?
    /// Which answer is shown: what comes of an earlier one is dropped.
    @ObservationIgnored private var turn = 0
    /// How often the last question was answered: it moves the seed, so that another answer is another one.
    @ObservationIgnored private var repeats: UInt64 = 0

    public init(conversations: Conversations, settings: SettingsModel, host: ModelHost) {
        (self.conversations, self.settings, self.host) = (conversations, settings, host)
        let kept = conversations.list()
        current = kept.first ?? conversations.create()
        list = kept
    }

    public var isAnswering: Bool { phase != .idle }
    public var canAnswer: Bool { host.model != nil && !isAnswering }
    /// A question without an answer, or an answer to replace.
    public var canRegenerate: Bool { canAnswer && !current.messages.isEmpty }

    /// Asks a question. An empty one, or one while an answer is written, is none. Whether it was taken.
    @discardableResult
    public func send(_ text: String) -> Bool {
        let question = text.trimmingCharacters(in: .whitespacesAndNewlines)
        guard canAnswer, !question.isEmpty else { return false }
        return ask { try conversations.add(Message(.user, question), to: current) }
    }

    /// Answers the last question again.
    public func regenerate() {
        guard canRegenerate else { return }
        ask(repeats: repeats + 1) { try conversations.retry(current) }
    }

    /// Asks a question of the user in other words; what followed it is forgotten.
    public func edit(at index: Int, content: String) {
        let question = content.trimmingCharacters(in: .whitespacesAndNewlines)
        guard canAnswer, !question.isEmpty, current.messages.indices.contains(index),
            current.messages[index].role == .user
        else { return }
        ask { try conversations.edit(current, at: index, content: question) }
    }

    /// Ends the answer now; what was written of it is kept.
    public func stop(because words: String? = nil) {
        guard isAnswering else { return }
        if let words { notes.append(words) }
        endAnswer()
    }

    public func new() {
        guard !current.messages.isEmpty else { return }
        show(conversations.create())
    }

    public func select(_ id: String) {
        guard id != current.id, let chosen = conversations.conversation(id) else { return }
        show(chosen)
    }

    public func rename(_ id: String, to title: String) {
        attempt {
            guard let conversation = conversations.conversation(id) else { return }
            let renamed = try conversations.rename(conversation, to: title)
            if id == current.id { current = renamed }
        }
    }

    public func delete(_ id: String) {
        if id == current.id { stop() }
        attempt { try conversations.delete(id) }
        if id == current.id { show(list.first ?? conversations.create()) }
    }

    /// The conversation as text to share.
    public var transcript: String {
        current.messages.map { "\($0.role == .user ? ">" : "") \($0.content)".trimmingCharacters(in: .whitespaces) }
            .joined(separator: "\n\n")
    }

    /// Waits until the answer has ended: for tests.
    public func settle() async { await answering?.value }

    private func show(_ conversation: Conversation) {
        stop()
        (current, notes, stats, repeats) = (conversation, [], nil, 0)
    }

    /// Changes the conversation, and lets the model answer it.
    @discardableResult
    private func ask(repeats: UInt64 = 0, _ change: () throws -> Conversation) -> Bool {
        guard let model = host.model, attempt({ current = try change() }) else { return false }
        let now = settings.settings
        let isUnused = !now.systemPrompt.isEmpty && !model.takesSystemPrompt
        let system = now.systemPrompt.isEmpty || isUnused ? [] : [Message(.system, now.systemPrompt)]
        var sampling = now.sampling
        sampling.seed &+= repeats
        turn += 1
        (answer, stats, phase) = ("", nil, .reading(done: 0, total: 0))
        notes = isUnused ? ["This model takes no system prompt: yours was left out."] : []
        self.repeats = repeats
        tell(.generationStarted)
        let replies = model.reply(system + current.messages, sampling, now.maxNewTokens)
        answering = Task { [turn] in await follow(replies, turn) }
        return true
    }

    private func follow(_ replies: LoadedModel.Replies, _ turn: Int) async {
        do {
            for try await reply in replies where turn == self.turn && isAnswering { take(reply) }
        } catch is CancellationError {
        } catch where turn == self.turn {
            problem = Problem(error)
        } catch {}
        if turn == self.turn, isAnswering { endAnswer() }
    }

    private func take(_ reply: Reply) {
        switch reply {
        case .dropped(_, let words): notes.append(words)
        case .reading(let done, let total): phase = .reading(done: done, total: total)
        case .text(let text, let figures):
            answer += text
            (stats, phase) = (figures, .writing)
        case .done(let ending, let figures):
            stats = figures
            if ending == .context { notes.append("The context is full: the answer ends here.") }
            if ending == .limit { notes.append("The answer reached its limit of tokens.") }
        }
    }

    private func endAnswer() {
        answering?.cancel()
        turn += 1
        phase = .idle
        tell(.generationEnded)
        let written = answer
        answer = ""
        guard !written.isEmpty else { return }
        attempt { current = try conversations.add(Message(.assistant, written), to: current) }
    }

    /// Runs what may fail on disk, says its problem, and reads the list again. Whether it went well.
    @discardableResult
    private func attempt(_ body: () throws -> Void) -> Bool {
        defer { list = conversations.list() }
        do {
            try body()
            return true
        } catch {
            problem = Problem(error)
            return false
        }
    }
}
