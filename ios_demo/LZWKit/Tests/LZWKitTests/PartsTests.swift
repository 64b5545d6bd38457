import Foundation
import XCTest

@testable import LZWKit

final class PartsTests: XCTestCase {
    func testJSONKeepsWhatDigestsNeed() throws {
        let text = #"{"b": [1e-05, -0, 1.50, true, null], "a": "é\u0007\"\ud83d\ude42", "É": {}}"#
        let written = String(decoding: try JSON.parse(Data(text.utf8)).canonical(), as: UTF8.self)
        XCTAssertEqual(
            written, #"{"a": "\u00e9\u0007\"\ud83d\ude42", "b": [1e-05, -0, 1.50, true, null], "\u00c9": {}}"#)
    }

    func testJSONIsStrict() {
        let wrong = [
            "", "{", "[1,]", "{\"a\":1,}", "01", "1.", "+1", "nul", "\"a", "\"\u{1}\"", "\"\\x\"", "\"\\ud800\"", "[1] 2",
            "{\"a\":1,\"a\":2}", "{'a':1}", "NaN", String(repeating: "[", count: 300),
        ]
        for text in wrong { XCTAssertThrowsError(try JSON.parse(Data(text.utf8)), text) }
        XCTAssertThrowsError(try JSON.parse(Data([34, 0xFF, 34])))
        // In a Swift dictionary these names would be one.
        XCTAssertNoThrow(try JSON.parse(Data("{\"\u{e9}\": 1, \"e\u{301}\": 2}".utf8)))
    }

    func testTextStreamGivesWholeCharacters() throws {
        let tokenizer = try Tokenizer(data: Data(contentsOf: Paths.golden.appendingPathComponent("tokenizer/gpt2.json")))
        for text in ["Kite 🪁 日本語 é", "a\u{301}\u{1F468}\u{200D}\u{1F469}"] {
            var stream = TextStream(tokenizer)
            let pieces = tokenizer.encode(text).map { stream.step($0) }
            XCTAssertFalse(pieces.joined().contains("\u{FFFD}"))
            XCTAssertEqual(pieces.joined() + stream.rest(), text)
        }
        var stream = TextStream(tokenizer)
        XCTAssertEqual(stream.step(tokenizer.encode("🪁").first!), "")
        XCTAssertEqual(stream.rest(), "\u{FFFD}")
    }

    func testControlTokensAreNotTyped() throws {
        let bundle = try ModelBundle.open(Paths.made("demo"))
        let tokenizer = try bundle.tokenizer(), chat = bundle.manifest.chat
        let parts = try chat.render([Message(.user, "Hello")], date: Date())
        let control = try XCTUnwrap(tokenizer.encode(parts).first { tokenizer.bytes($0).isEmpty })
        let mark = try XCTUnwrap(parts.first(where: \.isControl)?.text)
        let typed = tokenizer.encode(try chat.render([Message(.user, mark)], date: Date()))
        let plain = tokenizer.encode(parts)
        XCTAssertEqual(typed.filter { $0 == control }.count, plain.filter { $0 == control }.count)
    }

    func testConversationsOnDisk() throws {
        let folder = try temporaryFolder(self)
        let clock = Clock()
        let conversations = try Conversations(folder: folder) { clock.next() }
        var first = conversations.create()
        XCTAssertEqual(conversations.list(), [])
        first = try conversations.add(Message(.user, "What is a kite?\nTell me."), to: first)
        first = try conversations.add(Message(.assistant, "A toy."), to: first)
        first = try conversations.add(Message(.user, "And a bird?"), to: first)
        let second = try conversations.add(Message(.user, String(repeating: "x", count: 100)), to: conversations.create())
        XCTAssertEqual(first.title, "What is a kite?")
        XCTAssertEqual(second.title.count, 60)
        XCTAssertEqual(try Conversations(folder: folder).list(), [second, first])

        let edited = try conversations.edit(first, at: 0, content: "What is a boat?")
        XCTAssertEqual(edited.messages, [Message(.user, "What is a boat?")])
        let answered = try conversations.add(Message(.assistant, "A ship."), to: edited)
        XCTAssertEqual(try conversations.retry(answered).messages, edited.messages)
        XCTAssertEqual(try conversations.rename(second, to: "Ex").title, "Ex")
        XCTAssertEqual(conversations.conversation(second.id)?.title, "Ex")
        try Data("{".utf8).write(to: folder.appendingPathComponent("broken.json"))
        XCTAssertEqual(conversations.unreadable(), ["broken.json"])
        try conversations.delete(second.id)
        XCTAssertEqual(conversations.list().map(\.id), [first.id])
    }

    private final class Clock: @unchecked Sendable {
        private var seconds = 0.0
        func next() -> Date {
            seconds += 1
            return Date(timeIntervalSince1970: seconds)
        }
    }

    func testSettingsAreKept() throws {
        let file = SettingsFile(try temporaryFolder(self).appendingPathComponent("settings.json"))
        XCTAssertEqual(file.read(), ChatSettings())
        var settings = ChatSettings()
        settings.systemPrompt = "Be short."
        settings.sampling = Sampling(temperature: 0.5, topK: 40, topP: 0.9, seed: .max)
        try file.write(settings)
        XCTAssertEqual(file.read(), settings)
    }

    func testLoadGuard() throws {
        let file = try temporaryFolder(self).appendingPathComponent("loading")
        let guarded = LoadGuard(file: file)
        XCTAssertNil(guarded.crashedLast())
        try guarded.begin("demo")
        XCTAssertEqual(LoadGuard(file: file).crashedLast(), "demo")  // as at the next start
        guarded.finished()
        XCTAssertNil(LoadGuard(file: file).crashedLast())
    }

    func testMarkdown() {
        let text = """
            # A *title*
            Some **bold**, _italic_ and `code_x` in
            two lines, 2 * 3 * 4, snake_case_name and **open.

            - one
              - two
            12. twelve
            ```swift
            let x = "**"
            # no heading

            ```
            ####### seven
            ```
            not ended
            """
        let expected: [MarkdownBlock] = [
            .heading(level: 1, [MarkdownSpan("A "), MarkdownSpan("title", .italic)]),
            .paragraph([
                MarkdownSpan("Some "), MarkdownSpan("bold", .bold), MarkdownSpan(", "), MarkdownSpan("italic", .italic),
                MarkdownSpan(" and "), MarkdownSpan("code_x", .code),
                MarkdownSpan(" in\ntwo lines, 2 * 3 * 4, snake_case_name and **open."),
            ]),
            .item(marker: "•", depth: 0, [MarkdownSpan("one")]),
            .item(marker: "•", depth: 1, [MarkdownSpan("two")]),
            .item(marker: "12.", depth: 0, [MarkdownSpan("twelve")]),
            .code(language: "swift", text: "let x = \"**\"\n# no heading\n"),
            .paragraph([MarkdownSpan("####### seven")]),
            .code(language: "", text: "not ended"),
        ]
        XCTAssertEqual(Markdown.blocks(text), expected)
        XCTAssertEqual(Markdown.blocks(""), [])
    }

    func testMemoryForecast() throws {
        let manifest = try ModelBundle.open(Paths.made("demo")).manifest
        let forecast = try MemoryForecast(manifest, limitBytes: 1 << 30)
        let weights = manifest.files.first { $0.path == "model.pte" }!.byteCount
        XCTAssertEqual(forecast.cleanBytes, weights)
        XCTAssertTrue(forecast.fits && forecast.fitsWithWeights)
        let engine = try NativeEngine(ModelBundle.open(Paths.made("demo")))
        XCTAssertEqual(engine.state.kvCacheBytes, forecast.kvCacheBytes)
        XCTAssertGreaterThanOrEqual(forecast.bufferBytes, engine.state.bufferBytes)
        let narrow = try MemoryForecast(manifest, limitBytes: forecast.dirtyBytes)
        XCTAssertTrue(narrow.fits && !narrow.fitsWithWeights)
        let tooSmall = try MemoryForecast(manifest, limitBytes: forecast.dirtyBytes - 1)
        XCTAssertFalse(tooSmall.fits)
        XCTAssertTrue(tooSmall.words.contains("does not fit"), tooSmall.words)
    }
}
