import XCTest

@testable import LZWKit

/// The table of ios_demo/README.md, line by line.
final class MemoryPolicyTests: XCTestCase {
    private func policy(_ events: PolicyEvent...) -> MemoryPolicy {
        var policy = MemoryPolicy(budgetBytes: 1000)
        events.forEach { _ = policy.on($0) }
        return policy
    }

    private func stop(_ why: String) -> PolicyAction { .stopGeneration(words: "The answer was stopped: \(why).") }

    func testALoadedModelGetsTheBudget() {
        var policy = policy()
        XCTAssertEqual(policy.on(.loaded), [.setBudget(bytes: 1000)])
        XCTAssertEqual(policy.on(.generationStarted), [])
        XCTAssertEqual(policy.on(.generationEnded), [])
        XCTAssertEqual(policy.on(.unloaded), [])
    }

    func testMemoryWarnings() {
        var policy = policy(.loaded)
        XCTAssertEqual(policy.on(.memoryWarning(.moderate)), [.trim(bytes: 500)])
        XCTAssertEqual(policy.on(.memoryWarning(.moderate)), [.trim(bytes: 250)])
        XCTAssertEqual(policy.on(.memoryWarning(.low)), [.trim(bytes: .max)])
        XCTAssertEqual(policy.on(.memoryWarning(.moderate)), [])
        XCTAssertEqual(policy.on(.foreground), [.setBudget(bytes: 1000)])
    }

    func testCriticalMemory() {
        var generating = policy(.loaded, .generationStarted)
        XCTAssertEqual(
            generating.on(.memoryWarning(.critical)), [stop("the device is short of memory"), .trim(bytes: .max)])
        var idle = policy(.loaded)
        XCTAssertEqual(idle.on(.memoryWarning(.critical)), [.trim(bytes: .max), .unload])
        XCTAssertEqual(idle.on(.unloaded), [])
        XCTAssertEqual(idle.on(.memoryWarning(.critical)), [.trim(bytes: .max)])
        XCTAssertEqual(idle.on(.foreground), [.reload])
    }

    func testHeat() {
        var policy = policy(.loaded, .generationStarted)
        XCTAssertEqual(policy.on(.thermal(.fair)), [])
        XCTAssertEqual(policy.on(.thermal(.serious)), [.pause(milliseconds: 50)])
        XCTAssertEqual(policy.on(.thermal(.serious)), [])
        XCTAssertEqual(policy.on(.thermal(.critical)), [stop("the device is too hot"), .pause(milliseconds: 200)])
        XCTAssertEqual(policy.on(.generationEnded), [])
        XCTAssertEqual(policy.on(.thermal(.nominal)), [.pause(milliseconds: 0)])
        XCTAssertEqual(policy.on(.thermal(.critical)), [.pause(milliseconds: 200)])
    }

    func testBackgroundAndForeground() {
        var policy = policy(.loaded, .generationStarted)
        let unload: [PolicyAction] = [.trim(bytes: .max), .unload]
        XCTAssertEqual(policy.on(.background), [stop("the app went to the background")] + unload)
        XCTAssertEqual(policy.on(.background), [])
        XCTAssertEqual(policy.on(.unloaded), [])
        XCTAssertEqual(policy.on(.foreground), [.reload])
        XCTAssertEqual(policy.on(.loaded), [.setBudget(bytes: 1000)])
        XCTAssertEqual(policy.on(.background), unload)
        // A load that began before the app left.
        XCTAssertEqual(policy.on(.loaded), [.unload])
        XCTAssertEqual(policy.on(.foreground), [.reload])
        var empty = MemoryPolicy(budgetBytes: 1000)
        XCTAssertEqual(empty.on(.background), [])
        XCTAssertEqual(empty.on(.foreground), [])
    }

    func testAFullDisk() {
        var policy = policy(.loaded)
        XCTAssertEqual(policy.on(.lowDisk), [.dropCacheFolder])
    }
}
