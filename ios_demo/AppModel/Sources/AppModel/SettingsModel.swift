import Foundation
import LZWKit
import Observation

/// The settings, kept on disk at each change. They can be changed at any time, also while a model is loaded.
@MainActor @Observable
public final class SettingsModel {
    public var settings: ChatSettings {
        didSet {
            guard settings != oldValue else { return }
            do { try file.write(settings) } catch { problem = Problem(error) }
        }
    }
    public var problem: Problem?

    @ObservationIgnored private let file: SettingsFile

    public init(file: SettingsFile) {
        self.file = file
        settings = file.read()
    }

    public func reset() {
        let lastModel = settings.lastModel
        settings = ChatSettings()
        settings.lastModel = lastModel
    }
}
