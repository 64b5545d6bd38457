import XCTest

@testable import LZWKit

final class MemoryPolicyTests: XCTestCase {
    private let events: [String: PolicyEvent] = [
        "memory_moderate": .memoryWarning(.moderate), "memory_low": .memoryWarning(.low),
        "memory_critical": .memoryWarning(.critical), "thermal_nominal": .thermal(.nominal),
        "thermal_fair": .thermal(.fair), "thermal_serious": .thermal(.serious), "thermal_critical": .thermal(.critical),
        "background": .background, "foreground": .foreground, "low_disk": .lowDisk, "loaded": .loaded,
        "unloaded": .unloaded, "generation_started": .generationStarted, "generation_ended": .generationEnded,
    ]

    /// An action as the table spells it.
    private func spelled(_ action: PolicyAction) -> String {
        switch action {
        case .trim(let bytes): bytes == .max ? "trim all" : "trim \(bytes)"
        case .setBudget(let bytes): "set_budget \(bytes)"
        case .stopGeneration(let reason): "stop \(reason.rawValue)"
        case .unload: "unload"
        case .reload: "reload"
        case .dropCacheFolder: "drop_cache_folder"
        case .pause(let milliseconds): "pause \(milliseconds)"
        }
    }

    func testEveryEventHasTheActionsOfTheGoldenTable() throws {
        let cases = Dictionary(grouping: try table("policy.tsv")) { $0["case"]! }
        XCTAssertGreaterThan(cases.count, 15)
        for (name, rows) in cases {
            var policy = MemoryPolicy(budgetBytes: 1000)
            for (i, row) in rows.enumerated() {
                let event = try XCTUnwrap(events[row["event"]!], "\(name): \(row)")
                let actions = policy.on(event).map(spelled).joined(separator: ", ")
                XCTAssertEqual(actions.isEmpty ? "-" : actions, row["actions"], "\(name), event \(i + 1)")
            }
        }
        XCTAssertEqual(Set(events.keys), Set(cases.values.joined().map { $0["event"]! }))
    }
}
