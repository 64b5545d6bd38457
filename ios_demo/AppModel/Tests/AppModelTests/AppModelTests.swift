import Foundation
import LZWKit
import XCTest

@testable import AppModel

/// What the app does on the events of the device.
final class AppModelTests: XCTestCase {
    @MainActor
    func testTheBackgroundUnloadsAndTheForegroundLoadsAgain() async throws {
        let (app, script, fixture) = try makeApp()
        try fixture.addModel("m")
        app.choose("m")
        XCTAssertTrue(app.staysAwake)
        await app.host.settle()
        XCTAssertFalse(app.staysAwake)
        script.says([text("half")], holds: true)
        app.chat.send("q")
        XCTAssertTrue(app.staysAwake)
        while app.chat.answer.isEmpty { await Task.yield() }
        app.leave()
        XCTAssertFalse(app.staysAwake)
        XCTAssertEqual(app.host.state, .asleep(id: "m"))
        XCTAssertEqual(app.chat.current.messages.last, Message(.assistant, "half"))
        XCTAssertEqual(app.chat.notes.count, 1)
        await app.host.settle()
        app.on(.foreground)
        await app.host.settle()
        XCTAssertEqual(app.host.state, .ready(id: "m"))
        XCTAssertEqual(
            script.calls,
            ["open pte", "budget 1000", "trim \(UInt64.max)", "close", "open pte", "budget 1000"])
    }

    @MainActor
    func testAModelThatWasLoadedAfterTheAppLeftSleepsUntilItComesBack() async throws {
        let (app, script, fixture) = try makeApp()
        try fixture.addModel("m")
        app.choose("m")
        app.leave()
        while app.host.isLoading { await Task.yield() }
        await app.host.settle()
        XCTAssertEqual(app.host.state, .asleep(id: "m"))
        XCTAssertEqual(script.calls.last, "close")
        app.on(.foreground)
        await app.host.settle()
        XCTAssertEqual(app.host.state, .ready(id: "m"))
    }

    @MainActor
    func testMemoryHeatAndDisk() async throws {
        let (app, script, fixture) = try makeApp()
        try fixture.addModel("m")
        app.choose("m")
        await app.host.settle()
        script.says([text("x")], holds: true)
        app.chat.send("q")
        app.on(.memoryWarning(.moderate))
        XCTAssertTrue(app.chat.isAnswering)
        app.on(.memoryWarning(.critical))
        XCTAssertFalse(app.chat.isAnswering)
        app.on(.lowDisk)
        XCTAssertEqual(
            script.calls, ["open pte", "budget 1000", "trim 500", "trim \(UInt64.max)", "drop"])
        app.on(.thermal(.serious))
        while script.calls.last == "drop" { await Task.yield() }
        XCTAssertEqual(script.calls.last, "pause \(Duration.milliseconds(100))")
    }

    @MainActor
    func testAModelThatIsLoadedOnAHotDeviceIsSlowedDown() async throws {
        let (app, script, fixture) = try makeApp()
        try fixture.addModel("m")
        app.on(.thermal(.serious))
        app.choose("m")
        await app.host.settle()
        while script.calls.last == "budget 1000" { await Task.yield() }
        XCTAssertEqual(script.calls, ["open pte", "budget 1000", "pause \(Duration.milliseconds(100))"])
    }

    @MainActor
    func testDeletingTheModelThatIsLoadedUnloadsIt() async throws {
        let (app, _, fixture) = try makeApp()
        try fixture.addModel("m")
        app.library.refresh()
        app.choose("m")
        await app.host.settle()
        await app.library.delete("m")
        XCTAssertEqual(app.host.state, .empty)
        XCTAssertEqual(app.library.models.map(\.id), [])
        XCTAssertNil(app.settings.settings.lastModel)
    }

    @MainActor
    func testTheLastModelIsLoadedAtTheStart() async throws {
        let fixture = try Fixture()
        try fixture.addModel("m")
        let (first, _, _) = try makeApp(fixture)
        first.choose("m")
        await first.host.settle()
        let (second, _, _) = try makeApp(fixture)
        second.start()
        await second.host.settle()
        XCTAssertEqual(second.host.state, .ready(id: "m"))
    }

    func testTheForecastOfCoreMLPackages() throws {
        let manifest = try Fixture().manifest()
        XCTAssertThrowsError(try LoadForecast(manifest, .mlprogram, limitBytes: 1))
        let forecast = try LoadForecast(manifest, .pte, limitBytes: 1)
        XCTAssertFalse(forecast.fits)
    }

    @MainActor
    private func makeApp(_ given: Fixture? = nil) throws -> (AppModel, Script, Fixture) {
        let fixture = try given ?? Fixture(), script = Script()
        let weights = WeightMemory(
            budgetBytes: 1000, trim: { script.note("trim \($0)") }, setBudget: { script.note("budget \($0)") },
            dropFolder: { script.note("drop") })
        let app = try AppModel(
            folders: fixture.folders, weights: weights, availableBytes: { 4_000_000_000 }, transfer: nil,
            open: { bundle, format in
                script.note("open \(format.rawValue)")
                return script.model(bundle.manifest)
            })
        return (app, script, fixture)
    }
}
