import Foundation
import LZWKit
import XCTest

@testable import AppModel

/// From an import to an answer and a check, with the demo model and the core's own session.
final class RealModelTests: XCTestCase {
    @MainActor
    func testAnImportedModelAnswersAndIsChecked() async throws {
        let source = try madeBundle(), fixture = try Fixture(), id = source.lastPathComponent
        let app = try AppModel(
            folders: fixture.folders, weights: .ofTheCore(budgetBytes: 0, folder: fixture.folders.expandedWeights),
            availableBytes: { 4_000_000_000 }, transfer: nil,
            open: { bundle, format in
                LoadedModel(try await Session.open(bundle), of: bundle, format, device: "a test")
            })
        app.library.add(folder: source, format: .pte)
        await app.library.settle(id)
        app.choose(id)
        await app.host.settle()
        XCTAssertEqual(app.host.state, .ready(id: id))

        let golden = try Golden()
        app.settings.settings.sampling = .greedy
        app.settings.settings.maxNewTokens = golden.tokens.count
        app.chat.send(golden.question)
        await app.chat.settle()
        let bundle = try ModelBundle.open(source), ends = bundle.manifest.interface.eosTokenIds
        let expected = try bundle.tokenizer().decode(Array(golden.tokens.prefix { !ends.contains(Int($0)) }))
        XCTAssertEqual(app.chat.current.messages.last, Message(.assistant, expected))
        XCTAssertNotNil(app.chat.stats?.secondsToFirstToken)

        app.check.run()
        await app.check.settle()
        guard case .done(let report) = app.check.stage else { return XCTFail("\(app.check.stage)") }
        XCTAssertTrue(report.passed && report.sameBits, report.text)

        app.leave()
        await app.host.settle()
        app.on(.foreground)
        await app.host.settle()
        XCTAssertEqual(app.host.state, .ready(id: id))
    }

    /// The demo model's answer to a question, greedy (tests/golden/demo.json).
    private struct Golden {
        let question: String
        let tokens: [Int32]

        init() throws {
            let file = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
                .appendingPathComponent("../../../../tests/golden/demo.json").standardizedFileURL
            struct Chat: Decodable { let question: String, tokens: [Int32] }
            struct Content: Decodable { let chat: Chat }
            let chat = try JSONDecoder().decode(Content.self, from: Data(contentsOf: file)).chat
            (question, tokens) = (chat.question, chat.tokens)
        }
    }
}
