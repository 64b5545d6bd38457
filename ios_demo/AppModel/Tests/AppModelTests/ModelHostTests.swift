import Foundation
import LZWKit
import XCTest

@testable import AppModel

final class ModelHostTests: XCTestCase {
    @MainActor
    func testAModelIsLoadedOnce() async throws {
        let parts = try Parts()
        try parts.fixture.addModel("m")
        parts.host.load("m")
        XCTAssertTrue(parts.host.isLoading)
        parts.host.load("m")
        parts.host.load("other")
        await parts.host.settle()
        XCTAssertEqual(parts.host.state, .ready(id: "m"))
        parts.host.load("m")
        XCTAssertEqual(parts.script.calls, ["open pte"])
        XCTAssertTrue(parts.host.forecast!.fits)
    }

    @MainActor
    func testAModelThatDoesNotFitIsSaidNotLoaded() async throws {
        let parts = try Parts(available: 1000)
        try await parts.load()
        guard case .failed("m", let problem) = parts.host.state else { return XCTFail("\(parts.host.state)") }
        XCTAssertEqual(problem.kind, .memory)
        XCTAssertTrue(problem.what.contains("It does not fit"), problem.what)
        XCTAssertEqual(parts.script.calls, [])
    }

    @MainActor
    func testALoadThatEndedTheAppIsNotRepeated() async throws {
        let parts = try Parts()
        try parts.fixture.addModel("m")
        let flag = LoadGuard(file: parts.fixture.folders.loadFlag)
        try flag.begin("m")
        parts.host.restore("m")
        guard case .failed("m", let problem) = parts.host.state else { return XCTFail("\(parts.host.state)") }
        XCTAssertEqual(problem.kind, .crashedLastTime)
        XCTAssertNil(flag.crashedLast())
        parts.host.load("m")  // the user may try again
        await parts.host.settle()
        XCTAssertEqual(parts.host.state, .ready(id: "m"))
        XCTAssertNil(flag.crashedLast())
    }

    @MainActor
    func testTheLastModelComesBackIfItIsThere() async throws {
        let parts = try Parts()
        parts.host.restore("gone")
        XCTAssertEqual(parts.host.state, .empty)
        parts.host.restore(nil)
        try parts.fixture.addModel("m")
        parts.host.restore("m")
        await parts.host.settle()
        XCTAssertEqual(parts.host.state, .ready(id: "m"))
    }

    @MainActor
    func testAnErrorIsSaidInWordsAndTheFlagGoes() async throws {
        let error = BundleError(.outOfMemory, "there is not enough memory", hint: "Close other apps.")
        let parts = try Parts(openFails: error)
        try await parts.load()
        XCTAssertEqual(
            parts.host.state,
            .failed(id: "m", Problem(.memory, "there is not enough memory", hint: "Close other apps.")))
        XCTAssertNil(LoadGuard(file: parts.fixture.folders.loadFlag).crashedLast())
    }

    @MainActor
    func testAMissingFileIsNamed() async throws {
        let parts = try Parts()
        try parts.fixture.addModel("m", without: "tokenizer.json")
        parts.host.load("m")
        await parts.host.settle()
        guard case .failed("m", let problem) = parts.host.state else { return XCTFail("\(parts.host.state)") }
        XCTAssertEqual(problem.kind, .damaged)
        XCTAssertTrue(problem.what.contains("tokenizer.json"), problem.what)
    }

    @MainActor
    func testAnotherModelTakesThePlaceOfTheFirst() async throws {
        let parts = try Parts()
        try await parts.load("a")
        try await parts.load("b")
        XCTAssertEqual(parts.host.state, .ready(id: "b"))
        XCTAssertEqual(parts.script.calls, ["open pte", "close", "open pte"])
    }

    @MainActor
    func testCheckThisModel() async throws {
        let parts = try Parts()
        let check = CheckModel(host: parts.host)
        check.run()
        XCTAssertEqual(check.stage, .idle)
        try await parts.load()
        check.run()
        check.run()
        await check.settle()
        guard case .done(let report) = check.stage else { return XCTFail("\(check.stage)") }
        XCTAssertEqual(report.model, "m")
        parts.script.says([], then: BundleError(.missing, "no reference", hint: "Load it again."))
        check.run()
        await check.settle()
        XCTAssertEqual(check.stage, .failed(Problem(.damaged, "no reference", hint: "Load it again.")))
    }
}
