import Foundation
import XCTest

@testable import LZWKit

/// Real tokens of the demo model, against what Python has of them.
final class SessionTests: XCTestCase {
    private let question = [Message(.user, "What is the kite's name?")]

    private func demo() throws -> ModelBundle { try ModelBundle.open(Paths.made("demo")) }

    private func read(_ replies: AsyncThrowingStream<Reply, Error>) async throws -> (text: String, all: [Reply]) {
        var text = "", all: [Reply] = []
        for try await reply in replies {
            all.append(reply)
            if case .text(let piece, _) = reply { text += piece }
        }
        return (text, all)
    }

    func testDigestsAreThoseOfEverywhere() throws {
        let demo = try golden("demo.json")
        let engine = try NativeEngine(self.demo())
        for answer in demo["reference"]!.array! + [demo["chat"]!] {
            for batch in [1, 5, 1000] {
                try engine.trim(to: 0)
                var digest = SHA256Digest(), tokens: [Int32] = [], logits: [Float] = []
                let prompt = answer["prompt"]!.ids
                for begin in stride(from: 0, to: prompt.count, by: batch) {
                    logits = try engine.feed(Array(prompt[begin..<min(begin + batch, prompt.count)]), logits: true)
                }
                for _ in answer["tokens"]!.array! {
                    if !tokens.isEmpty { logits = try engine.feed([tokens.last!], logits: true) }
                    logits.withUnsafeBytes { digest.update($0) }
                    tokens.append(Int32(logits.indices.reduce(0) { logits[$1] > logits[$0] ? $1 : $0 }))
                }
                XCTAssertEqual(tokens, answer["tokens"]!.ids)
                XCTAssertEqual(digest.finish(), answer["sha256"]!.string!)
            }
        }
    }

    func testAnswersAsTinyqmoeRun() async throws {
        let session = try await Session.open(demo())
        let run = try json(Paths.made("run.json"))
        let (text, all) = try await read(session.reply(to: question, maxNewTokens: 24))
        XCTAssertEqual(text, run["text"]!.string!)
        guard case .done(let ending, let stats) = all.last else { return XCTFail("it has no end") }
        XCTAssertEqual(ending, .end)
        XCTAssertEqual(stats.promptTokens, run["prompt_tokens"]!.array!.count)
        XCTAssertEqual(stats.answerTokens, run["tokens"]!.array!.count)
        XCTAssertEqual(stats.reusedTokens, 0)
        XCTAssertGreaterThan(stats.secondsToFirstToken!, 0)
        XCTAssertGreaterThan(stats.tokensPerSecond!, 0)
        XCTAssertGreaterThan(stats.engine.kvCacheBytes, 0)
    }

    func testACacheThatIsKeptChangesNothing() async throws {
        let kept = try await Session.open(demo())
        var messages = question
        messages.append(Message(.assistant, try await read(kept.reply(to: messages, maxNewTokens: 8)).text))
        messages.append(Message(.user, "And the boat?"))
        let next = try await read(kept.reply(to: messages, maxNewTokens: 8))
        guard case .done(_, let stats) = next.all.last else { return XCTFail("it has no end") }
        XCTAssertGreaterThan(stats.reusedTokens, 10)
        let fresh = try await Session.open(demo())
        let again = try await read(fresh.reply(to: messages, maxNewTokens: 8))
        XCTAssertEqual(next.text, again.text)
    }

    func testTheOldestTurnsAreLeftOut() async throws {
        let session = try await Session.open(demo())
        var messages: [Message] = []
        for _ in 0..<12 { messages += question + [Message(.assistant, "I do not know that.")] }
        let (_, all) = try await read(session.reply(to: messages + question, maxNewTokens: 4))
        guard case .dropped(let count, let words) = all.first else { return XCTFail("nothing was said") }
        XCTAssertTrue(count > 0 && count % 2 == 0 && words.contains("\(count)"), words)
        let tooLong = Message(.user, String(repeating: "kite ", count: 200))
        let error = await asyncBundleError { _ = try await read(session.reply(to: [tooLong])) }
        XCTAssertEqual(error?.kind, .contextFull)
    }

    func testACancelEndsWithinAToken() async throws {
        let session = try await Session.open(demo())
        var before = 0
        for try await reply in session.reply(to: question, sampling: Sampling(temperature: 5, seed: 3)) {
            guard case .text(_, let stats) = reply else { continue }
            before = stats.answerTokens
            if before >= 3 { break }
        }
        // An answer that was stopped is waited for; another may begin at once.
        let text = try await read(session.reply(to: question, maxNewTokens: 24)).text
        XCTAssertEqual(text, try json(Paths.made("run.json"))["text"]!.string!)
        XCTAssertLessThan(before, 10)
    }

    func testOneAnswerAtATime() async throws {
        let session = try await Session.open(demo())
        var first = session.reply(to: question, sampling: Sampling(temperature: 5, seed: 1), maxNewTokens: 60)
            .makeAsyncIterator()
        _ = try await first.next()
        await session.setPause(.milliseconds(20))
        let error = await asyncBundleError { _ = try await read(session.reply(to: question)) }
        XCTAssertEqual(error?.kind, .busy)
        while try await first.next() != nil {}
    }

    func testTrimWhileGenerating() async throws {
        let ternary = try ModelBundle.open(Paths.made("ternary"))
        let session = try await Session.open(ternary)
        let expected = try await read(session.reply(to: question, maxNewTokens: 20)).text
        Residency.setBudget(bytes: .max)
        defer { Residency.setBudget(bytes: 0) }
        var text = "", freed: UInt64 = 0
        for try await reply in session.reply(to: question, maxNewTokens: 20) {
            if case .text(let piece, _) = reply {
                text += piece
                freed += Residency.trim()
            }
        }
        XCTAssertEqual(text, expected)
        XCTAssertGreaterThan(freed, 0)
        XCTAssertEqual(Residency.statistics.dirtyBytes, 0)
    }

    func testSamplingIsDeterministic() async throws {
        let session = try await Session.open(demo())
        func text(_ seed: UInt64) async throws -> String {
            try await read(session.reply(to: question, sampling: Sampling(temperature: 1.5, seed: seed), maxNewTokens: 20)).text
        }
        let first = try await text(1), again = try await text(1), other = try await text(2)
        XCTAssertEqual(first, again)
        XCTAssertNotEqual(first, other)
    }

    func testClosedSessionsRefuse() async throws {
        let session = try await Session.open(demo())
        try await session.close()
        try await session.close()
        let error = await asyncBundleError { _ = try await read(session.reply(to: question)) }
        XCTAssertEqual(error?.kind, .notSupported)
    }

    func testMissingAndDamagedFiles() async throws {
        let folder = try temporaryFolder(self).appendingPathComponent("model")
        try FileManager.default.copyItem(at: Paths.made("demo"), to: folder)
        let program = folder.appendingPathComponent("model.pte")
        let whole = try Data(contentsOf: program)
        func opening() async -> BundleError? {
            await asyncBundleError { _ = try await Session.open(ModelBundle.open(folder)) }
        }
        try FileManager.default.removeItem(at: program)
        var error = await opening()
        XCTAssertEqual(error?.problems, ["model.pte is missing"])
        try whole.dropLast(5).write(to: program)
        error = await opening()
        XCTAssertEqual(error?.kind, .damaged)
        var flipped = whole
        flipped[flipped.count / 2] ^= 1
        try flipped.write(to: program)
        error = bundleError { try ModelBundle.open(folder).verify(.pte, hashed: true) }
        XCTAssertTrue(error?.problems.first?.contains("SHA-256") ?? false)
        try whole.write(to: program)
        XCTAssertNoThrow(try ModelBundle.open(folder).verify(.pte, hashed: true))
        try FileManager.default.removeItem(at: folder.appendingPathComponent("tokenizer.json"))
        error = await opening()
        XCTAssertEqual(error?.problems, ["tokenizer.json is missing"])
        try FileManager.default.removeItem(at: folder.appendingPathComponent("manifest.json"))
        error = await opening()
        XCTAssertEqual(error?.kind, .notABundle)
    }

    func testTheCoreNamesTheDamage() throws {
        let folder = try temporaryFolder(self).appendingPathComponent("model")
        try FileManager.default.copyItem(at: Paths.made("demo"), to: folder)
        let bundle = try ModelBundle.open(folder)
        try Data(count: 100).write(to: folder.appendingPathComponent("model.pte"))
        let error = bundleError { _ = try NativeEngine(bundle) }
        XCTAssertTrue(error?.what.contains("does not lie in a file of the bundle") ?? false, error?.what ?? "")
    }

    func testAnEngineThatIsNotLinkedIsNamed() throws {
        var options = NativeEngine.Options()
        options.kind = .executorch
        let bundle = try ModelBundle.open(Paths.made("demo"))
        let error = bundleError { _ = try NativeEngine(bundle, options: options) }
        XCTAssertEqual(error?.kind, .notSupported)
        XCTAssertTrue(error?.what.contains("the engine ExecuTorch is not in this program") ?? false, error?.what ?? "")
    }
}
