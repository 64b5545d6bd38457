// What Apple's Foundation has and that of Linux lacks, as far as the app uses it. It is compiled into the module of the
// app when types are checked on Linux, and is no part of the app.
@_exported import Foundation
@_exported import FoundationNetworking

extension ProcessInfo {
    enum ThermalState: Int { case nominal, fair, serious, critical }
    var thermalState: ThermalState { fatalError() }
    static let thermalStateDidChangeNotification = Notification.Name("thermal")
}

extension URLResourceValues {
    var volumeAvailableCapacityForImportantUsage: Int64? { fatalError() }
    var isExcludedFromBackup: Bool? { get { fatalError() } set {} }
}

extension URLResourceKey {
    static let volumeAvailableCapacityForImportantUsageKey = URLResourceKey(rawValue: "capacity")
}

extension URLSessionConfiguration {
    static func background(withIdentifier identifier: String) -> URLSessionConfiguration { fatalError() }
    var sessionSendsLaunchEvents: Bool { get { fatalError() } set {} }
}

extension URLSession {
    var allTasks: [URLSessionTask] { get async { fatalError() } }
}

extension URLError {
    var downloadTaskResumeData: Data? { fatalError() }
}

extension URL {
    static var applicationSupportDirectory: URL { fatalError() }
    static var cachesDirectory: URL { fatalError() }
}
