import Foundation
import LZWKit
import UIKit
import os

/// The events of the device that `MemoryPolicy` knows.
@MainActor
final class DeviceEvents {
    private nonisolated static let criticalBytes = 150_000_000
    private nonisolated static let lowDiskBytes: Int64 = 500_000_000

    /// What the app may still take. The simulator says 0: there it is the memory of the Mac.
    nonisolated static func availableBytes() -> Int {
        let available = Int(os_proc_available_memory())
        return available > 0 ? available : Int(clamping: ProcessInfo.processInfo.physicalMemory)
    }

    /// Tells of memory warnings and heat, on the main thread.
    func follow(_ tell: @escaping @MainActor (PolicyEvent) -> Void) {
        tell(.thermal(Self.thermal()))
        observe(UIApplication.didReceiveMemoryWarningNotification) {
            tell(.memoryWarning(Self.availableBytes() < Self.criticalBytes ? .critical : .low))
        }
        observe(ProcessInfo.thermalStateDidChangeNotification) { tell(.thermal(Self.thermal())) }
    }

    func isDiskLow(at url: URL) -> Bool {
        let values = try? url.resourceValues(forKeys: [.volumeAvailableCapacityForImportantUsageKey])
        guard let free = values?.volumeAvailableCapacityForImportantUsage else { return false }
        return free < Self.lowDiskBytes
    }

    /// The app's life is that of its observers: they are never removed.
    private func observe(_ name: Notification.Name, _ body: @escaping @MainActor () -> Void) {
        _ = NotificationCenter.default.addObserver(forName: name, object: nil, queue: .main) { _ in
            MainActor.assumeIsolated(body)
        }
    }

    private static func thermal() -> PolicyEvent.ThermalLevel {
        switch ProcessInfo.processInfo.thermalState {
        case .nominal: .nominal
        case .fair: .fair
        case .serious: .serious
        case .critical: .critical
        @unknown default: .critical
        }
    }
}
