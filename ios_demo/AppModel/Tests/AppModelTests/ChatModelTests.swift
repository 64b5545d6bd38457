import Foundation
import LZWKit
import XCTest

@testable import AppModel

final class ChatModelTests: XCTestCase {
    @MainActor
    func testAnAnswerIsStreamedAndKept() async throws {
        let parts = try Parts()
        try await parts.load()
        parts.script.says([.reading(done: 3, total: 5), text("Pa"), text("ris"), done()])
        XCTAssertTrue(parts.chat.send(" Capital? \n"))
        XCTAssertTrue(parts.chat.isAnswering)
        await parts.chat.settle()
        XCTAssertFalse(parts.chat.isAnswering)
        XCTAssertEqual(parts.chat.current.messages, [Message(.user, "Capital?"), Message(.assistant, "Paris")])
        XCTAssertEqual(parts.chat.list.map(\.title), ["Capital?"])
        XCTAssertEqual(parts.chat.transcript, "> Capital?\n\nParis")
        let again = try Parts(parts.fixture)
        XCTAssertEqual(again.chat.current.messages.count, 2)
    }

    @MainActor
    func testASecondTapFindsNothingToDo() async throws {
        let parts = try Parts()
        try await parts.load()
        parts.script.says([text("x")], holds: true)
        XCTAssertTrue(parts.chat.send("one"))
        XCTAssertFalse(parts.chat.send("one"))
        parts.chat.regenerate()
        parts.chat.edit(at: 0, content: "two")
        XCTAssertEqual(parts.script.asked.count, 1)
        parts.chat.stop()
        parts.chat.stop()
        XCTAssertFalse(parts.chat.send("  "))
    }

    @MainActor
    func testNothingIsSentWithoutAModel() async throws {
        let parts = try Parts()
        XCTAssertFalse(parts.chat.send("hello"))
        XCTAssertEqual(parts.chat.current.messages, [])
    }

    @MainActor
    func testStopKeepsWhatWasWritten() async throws {
        let parts = try Parts()
        try await parts.load()
        parts.script.says([text("half")], holds: true)
        parts.chat.send("q")
        while parts.chat.answer != "half" { await Task.yield() }
        parts.chat.stop(because: "It was hot.")
        XCTAssertFalse(parts.chat.isAnswering)
        XCTAssertEqual(parts.chat.current.messages.last, Message(.assistant, "half"))
        XCTAssertEqual(parts.chat.notes, ["It was hot."])
        await parts.chat.settle()
        XCTAssertEqual(parts.chat.current.messages.count, 2)
    }

    @MainActor
    func testRegenerateReplacesTheLastAnswer() async throws {
        let parts = try Parts()
        try await parts.load()
        parts.script.says([text("a"), done()])
        parts.script.says([text("b"), done()])
        parts.chat.send("q")
        await parts.chat.settle()
        parts.chat.regenerate()
        await parts.chat.settle()
        XCTAssertEqual(parts.chat.current.messages, [Message(.user, "q"), Message(.assistant, "b")])
    }

    @MainActor
    func testAnotherAnswerTakesTheNextSeed() async throws {
        let parts = try Parts()
        parts.settings.settings.sampling.seed = .max
        try await parts.load()
        parts.chat.send("q")
        await parts.chat.settle()
        for _ in 1...2 {
            parts.chat.regenerate()
            await parts.chat.settle()
        }
        parts.chat.send("r")
        await parts.chat.settle()
        XCTAssertEqual(parts.script.seeds, [.max, 0, 1, .max])
    }

    @MainActor
    func testEditForgetsWhatFollowed() async throws {
        let parts = try Parts()
        try await parts.load()
        for answer in ["a", "b", "c"] { parts.script.says([text(answer), done()]) }
        for question in ["one", "two"] {
            parts.chat.send(question)
            await parts.chat.settle()
        }
        parts.chat.edit(at: 1, content: "an answer is not edited")
        XCTAssertEqual(parts.chat.current.messages.count, 4)
        parts.chat.edit(at: 0, content: "uno")
        await parts.chat.settle()
        XCTAssertEqual(parts.chat.current.messages, [Message(.user, "uno"), Message(.assistant, "c")])
        XCTAssertEqual(parts.script.asked.last, [Message(.user, "uno")])
    }

    @MainActor
    func testDroppedTurnsAndAFullContextAreSaid() async throws {
        let parts = try Parts()
        try await parts.load()
        parts.script.says([.dropped(messages: 2, words: "Two are gone."), text("a"), done(.context)])
        parts.chat.send("q")
        await parts.chat.settle()
        XCTAssertEqual(parts.chat.notes, ["Two are gone.", "The context is full: the answer ends here."])
    }

    @MainActor
    func testAnErrorIsSaidAndTheQuestionStays() async throws {
        let parts = try Parts()
        try await parts.load()
        let error = BundleError(.contextFull, "the message has 900 tokens", hint: "Shorten it.")
        parts.script.says([], then: error)
        parts.chat.send("long")
        await parts.chat.settle()
        XCTAssertEqual(parts.chat.problem, Problem(.other, "the message has 900 tokens", hint: "Shorten it."))
        XCTAssertEqual(parts.chat.current.messages, [Message(.user, "long")])
        XCTAssertTrue(parts.chat.canRegenerate)
    }

    @MainActor
    func testTheSystemPromptIsASetting() async throws {
        let parts = try Parts()
        parts.settings.settings.systemPrompt = "Be brief."
        try await parts.load()
        parts.script.says([done()])
        parts.chat.send("q")
        await parts.chat.settle()
        XCTAssertEqual(parts.script.asked, [[Message(.system, "Be brief."), Message(.user, "q")]])
        XCTAssertEqual(try Parts(parts.fixture).settings.settings.systemPrompt, "Be brief.")
        parts.settings.settings.lastModel = "m"
        parts.settings.reset()
        XCTAssertEqual(parts.settings.settings.systemPrompt, "")
        XCTAssertEqual(parts.settings.settings.lastModel, "m")
    }

    @MainActor
    func testASystemPromptThatTheModelDoesNotTakeIsLeftOutWithAWord() async throws {
        let parts = try Parts(takesSystemPrompt: false)
        parts.settings.settings.systemPrompt = "Be brief."
        try await parts.load()
        parts.script.says([text("a"), done()])
        parts.chat.send("q")
        await parts.chat.settle()
        XCTAssertEqual(parts.script.asked, [[Message(.user, "q")]])
        XCTAssertEqual(parts.chat.notes, ["This model takes no system prompt: yours was left out."])
    }

    @MainActor
    func testConversationsAreSwitchedRenamedAndDeleted() async throws {
        let parts = try Parts()
        try await parts.load()
        for answer in ["a", "b"] { parts.script.says([text(answer), done()]) }
        parts.chat.send("first")
        await parts.chat.settle()
        let first = parts.chat.current.id
        parts.chat.new()
        parts.chat.new()
        parts.chat.send("second")
        await parts.chat.settle()
        XCTAssertEqual(parts.chat.list.count, 2)
        parts.chat.select(first)
        XCTAssertEqual(parts.chat.current.messages.first?.content, "first")
        parts.chat.rename(first, to: "Renamed")
        XCTAssertEqual(parts.chat.current.title, "Renamed")
        parts.chat.delete(first)
        XCTAssertEqual(parts.chat.current.messages.first?.content, "second")
        parts.chat.delete(parts.chat.current.id)
        XCTAssertEqual(parts.chat.list, [])
        XCTAssertEqual(parts.chat.current.messages, [])
    }

    @MainActor
    func testAnAnswerOfAConversationThatWasLeftDoesNotComeElsewhere() async throws {
        let parts = try Parts()
        try await parts.load()
        parts.script.says([text("a")], holds: true)
        parts.chat.send("first")
        while parts.chat.answer.isEmpty { await Task.yield() }
        let first = parts.chat.current.id
        parts.chat.new()
        await parts.chat.settle()
        XCTAssertEqual(parts.chat.current.messages, [])
        parts.chat.select(first)
        XCTAssertEqual(parts.chat.current.messages.map(\.content), ["first", "a"])
    }
}
