import Foundation
import LZWKit
import Observation

/// "Check this model": the verdicts of `tinyqmoe parity` on this device.
@MainActor @Observable
public final class CheckModel {
    public enum Stage: Equatable, Sendable {
        case idle
        case running(done: Int, total: Int)
        case done(CheckReport)
        case failed(Problem)
    }

    public private(set) var stage = Stage.idle

    @ObservationIgnored private let host: ModelHost
    @ObservationIgnored private var task: Task<Void, Never>?

    public init(host: ModelHost) { self.host = host }

    public var isRunning: Bool { if case .running = stage { true } else { false } }

    /// Runs the check with the model that is loaded; nothing while one runs.
    public func run() {
        guard !isRunning, let model = host.model else { return }
        stage = .running(done: 0, total: 0)
        task = Task {
            do {
                let report = try await model.check { done, total in
                    Task { @MainActor [weak self] in self?.advance(done, total) }
                }
                stage = .done(report)
            } catch is CancellationError {
                stage = .idle
            } catch {
                stage = .failed(Problem(error))
            }
        }
    }

    public func stop() { task?.cancel() }

    /// Waits until it has ended: for tests.
    public func settle() async { await task?.value }

    private func advance(_ done: Int, _ total: Int) {
        if isRunning { stage = .running(done: done, total: total) }
    }
}
