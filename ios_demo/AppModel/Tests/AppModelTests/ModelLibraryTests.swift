import Foundation
import LZWKit
import XCTest

@testable import AppModel

/// Imports of a real bundle: `demo` in the folder that LZW_MADE names.
final class ModelLibraryTests: XCTestCase {
    @MainActor
    func testAFolderIsImported() async throws {
        let bundle = try madeBundle(), fixture = try Fixture()
        let library = ModelLibrary(store: fixture.store)
        library.add(folder: bundle, format: .pte)
        library.add(folder: bundle, format: .pte)
        XCTAssertEqual(library.imports.map(\.stage), [.running])
        await library.settle(bundle.lastPathComponent)
        XCTAssertEqual(library.imports, [])
        XCTAssertEqual(library.models.map(\.id), [bundle.lastPathComponent])
        XCTAssertEqual(try library.models[0].bundle.get().installedFormat, .pte)
    }

    @MainActor
    func testAPausedImportGoesOnAlsoInAnotherLibrary() async throws {
        let bundle = try madeBundle(), fixture = try Fixture(), id = bundle.lastPathComponent
        let library = ModelLibrary(store: fixture.store)
        library.add(folder: bundle, format: .pte)
        library.pause(id)
        await library.settle(id)
        XCTAssertEqual(library.imports.map(\.stage), [.paused])
        let again = ModelLibrary(store: fixture.store)
        XCTAssertEqual(again.imports.map(\.stage), [.paused])
        again.resume(id)
        await again.settle(id)
        XCTAssertEqual(again.models.map(\.id), [id])
        XCTAssertEqual(again.imports, [])
    }

    @MainActor
    func testAFailureIsSaidAndCanBeDeleted() async throws {
        let fixture = try Fixture(), library = ModelLibrary(store: fixture.store)
        library.add(folder: fixture.folder.appendingPathComponent("nothing"), format: .pte)
        await library.settle("nothing")
        guard case .failed(let problem) = library.imports.first?.stage else { return XCTFail("\(library.imports)") }
        XCTAssertEqual(problem.kind, .damaged)
        await library.delete("nothing")
        XCTAssertEqual(library.imports, [])
        XCTAssertEqual(ModelLibrary(store: fixture.store).imports, [])
    }

    @MainActor
    func testADeletedImportIsGoneWhileItRuns() async throws {
        let bundle = try madeBundle(), fixture = try Fixture()
        let library = ModelLibrary(store: fixture.store)
        library.add(folder: bundle, format: .pte)
        await library.delete(bundle.lastPathComponent)
        XCTAssertEqual(library.imports, [])
        XCTAssertEqual(library.models.map(\.id), [])
    }

    @MainActor
    func testWhatIsNoWebAddress() async throws {
        let library = ModelLibrary(store: try Fixture().store)
        for typed in ["", "model", "ftp://host/model", "https://", "/etc"] {
            library.problem = nil
            library.add(address: typed, format: .pte)
            XCTAssertNotNil(library.problem, typed)
        }
        XCTAssertEqual(library.imports, [])
    }
}
