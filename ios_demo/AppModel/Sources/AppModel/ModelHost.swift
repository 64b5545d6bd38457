import Foundation
import LZWKit
import Observation

/// The model that answers: loads one at a time, after a look at memory, and never the one whose load killed the app.
@MainActor @Observable
public final class ModelHost {
    public enum State: Equatable, Sendable {
        case empty
        case loading(id: String)
        case ready(id: String)
        /// Unloaded by the policy; it comes back with the app.
        case asleep(id: String)
        case failed(id: String, Problem)
    }

    /// Opens a model that is in the store. Runs off the main thread.
    public typealias Opener = @Sendable (ModelBundle, Package.Format) async throws -> LoadedModel

    public private(set) var state = State.empty
    public private(set) var model: LoadedModel?
    /// What the model needs, as said before it was loaded.
    public private(set) var forecast: LoadForecast?

    /// Told `.loaded` and `.unloaded`.
    @ObservationIgnored public var tell: (PolicyEvent) -> Void = { _ in }
    @ObservationIgnored private let store: BundleStore
    @ObservationIgnored private let guardFile: LoadGuard
    @ObservationIgnored private let availableBytes: @Sendable () -> Int
    @ObservationIgnored private let open: Opener
    @ObservationIgnored private var work: Task<Void, Never>?
    @ObservationIgnored private var pause = Duration.zero

    public init(
        store: BundleStore, guardFile: LoadGuard, availableBytes: @escaping @Sendable () -> Int, open: @escaping Opener
    ) {
        (self.store, self.guardFile, self.availableBytes, self.open) = (store, guardFile, availableBytes, open)
    }

    public var isLoading: Bool { if case .loading = state { true } else { false } }
    public var id: String? {
        switch state {
        case .empty: nil
        case .loading(let id), .ready(let id), .asleep(let id), .failed(let id, _): id
        }
    }

    /// Loads the model of the last time, unless its load ended the app: then it says so, once.
    public func restore(_ last: String?) {
        if let crashed = guardFile.crashedLast() {
            guardFile.finished()
            let what = "The app ended while it loaded \(crashed), most likely for want of memory."
            state = .failed(
                id: crashed,
                Problem(.crashedLastTime, what, hint: "Close other apps and load it again, or choose a smaller model."))
        } else if let last, store.models().contains(where: { $0.id == last }) {
            load(last)
        }
    }

    /// Loads a model in place of the present one. Does nothing while one is being loaded, or for the one that is there.
    public func load(_ id: String) {
        guard !isLoading, state != .ready(id: id) else { return }
        let previous = model
        if previous != nil { forget() }
        state = .loading(id: id)
        work = Task {
            await previous?.close()
            await bring(id)
        }
    }

    /// Gives the memory back.
    public func unload() { close(then: .empty) }

    /// As the policy asks: the model comes back with `wake`.
    public func sleep() {
        if case .ready(let id) = state { close(then: .asleep(id: id)) }
    }

    public func wake() {
        if case .asleep(let id) = state { load(id) }
    }

    /// How long the model waits between tokens, on a device that is hot; the next model too.
    public func setPause(_ pause: Duration) {
        self.pause = pause
        let model = model
        Task { await model?.setPause(pause) }
    }

    /// Waits for what was begun: for tests, and before the app's files are touched.
    public func settle() async { await work?.value }

    private func close(then next: State) {
        guard !isLoading, let model else { return }
        forget()
        state = next
        work = Task { await model.close() }
    }

    private func forget() {
        model = nil
        forecast = nil
        tell(.unloaded)
    }

    private func bring(_ id: String) async {
        do {
            let bundle = try ModelBundle.open(store.folder(of: id))
            let format = try installed(bundle)
            let forecast = try LoadForecast(bundle.manifest, format, limitBytes: availableBytes())
            self.forecast = forecast
            guard forecast.fits else {
                state = .failed(id: id, Problem(.memory, forecast.words, hint: "Nothing was loaded."))
                return
            }
            try guardFile.begin(id)
            defer { guardFile.finished() }
            model = try await open(bundle, format)
            state = .ready(id: id)
            tell(.loaded)
            if pause != .zero { setPause(pause) }
        } catch {
            state = .failed(id: id, Problem(error))
        }
    }

    private func installed(_ bundle: ModelBundle) throws -> Package.Format {
        if let format = bundle.installedFormat { return format }
        try bundle.verify(bundle.manifest.packages[0].format, check: false)
        throw BundleError(.missing, "no package of the model is whole", hint: "Delete the model and load it again.")
    }
}
