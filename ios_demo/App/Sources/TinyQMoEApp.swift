import AppModel
import SwiftUI
import UIKit

@main
struct TinyQMoEApp: App {
    @UIApplicationDelegateAdaptor(AppDelegate.self) private var delegate
    @Environment(\.scenePhase) private var scenePhase

    var body: some Scene {
        WindowGroup {
            switch delegate.start {
            case .success(let app):
                RootView(app: app).task { app.start() }
            case .failure(let error):
                ContentUnavailableView(
                    "start.failed", systemImage: "externaldrive.badge.xmark",
                    description: Text(verbatim: error.localizedDescription))
            }
        }
        .onChange(of: scenePhase) { _, phase in delegate.follow(phase) }
    }
}

/// Makes the parts of the app, and hands it the events of the device.
@MainActor
final class AppDelegate: NSObject, UIApplicationDelegate {
    let start: Result<AppModel, any Error>
    private let transfer: BackgroundTransfer
    private let device = DeviceEvents()

    override init() {
        let support = URL.applicationSupportDirectory.appending(path: "TinyQMoE")
        let folders = AppFolders(support: support, caches: .cachesDirectory.appending(path: "TinyQMoE"))
        transfer = BackgroundTransfer(root: support)
        start = Result { [transfer] in try Self.makeApp(folders, transfer) }
        super.init()
        if case .success(let app) = start { device.follow { app.on($0) } }
    }

    func follow(_ phase: ScenePhase) {
        guard case .success(let app) = start else { return }
        if phase == .background { app.leave() }
        if phase == .active {
            app.on(.foreground)
            if device.isDiskLow(at: .applicationSupportDirectory) { app.on(.lowDisk) }
        }
    }

    /// The system woke the app, since downloads came while it was away.
    func application(
        _ application: UIApplication, handleEventsForBackgroundURLSession identifier: String,
        completionHandler: @escaping () -> Void
    ) { transfer.whenIdle(completionHandler) }

    private static func makeApp(_ folders: AppFolders, _ transfer: BackgroundTransfer) throws -> AppModel {
        try FileManager.default.createDirectory(at: folders.models, withIntermediateDirectories: true)
        var models = folders.models
        var values = URLResourceValues()
        values.isExcludedFromBackup = true
        try models.setResourceValues(values)
        // A quarter of what the app may take, for weights that are faster expanded.
        let budget = UInt64(DeviceEvents.availableBytes() / 4)
        return try AppModel(
            folders: folders, weights: .ofTheCore(budgetBytes: budget, folder: folders.expandedWeights),
            availableBytes: DeviceEvents.availableBytes, transfer: transfer,
            open: ModelOpening(folders: folders).open)
    }
}
