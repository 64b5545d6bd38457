// What the app uses of UIKit, declared for type checks where there is no Apple SDK. Nothing here runs.
@_exported import Foundation

@MainActor
public protocol UIApplicationDelegate: NSObjectProtocol {
    func application(
        _ application: UIApplication, handleEventsForBackgroundURLSession identifier: String,
        completionHandler: @escaping () -> Void)
}

@MainActor
open class UIApplication: NSObject {
    public static var shared: UIApplication { fatalError() }
    public nonisolated static let didReceiveMemoryWarningNotification = Notification.Name("memory")
    open var isIdleTimerDisabled = false
}

@MainActor
open class UIDevice: NSObject {
    public static var current: UIDevice { fatalError() }
    open var model: String { fatalError() }
}

open class UIPasteboard: NSObject {
    public static var general: UIPasteboard { fatalError() }
    open var string: String? { get { fatalError() } set {} }
}

public enum UIKeyboardType: Int, Sendable { case `default`, URL }
