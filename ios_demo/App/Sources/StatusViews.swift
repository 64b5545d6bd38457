import AppModel
import LZWKit
import SwiftUI

/// What the model does: it loads, sleeps, failed, or there is none.
struct ModelBanner: View {
    let app: AppModel

    var body: some View {
        Group {
            switch app.host.state {
            case .empty: Text("model.none")
            case .loading(let id): ProgressView("model.loading \(id)")
            case .asleep(let id): Text("model.asleep \(id)")
            case .failed(let id, let problem): failure(id, problem)
            case .ready: plain
            }
        }
        .font(.footnote)
        .frame(maxWidth: .infinity, alignment: .leading)
        .padding(.horizontal)
    }

    private func failure(_ id: String, _ problem: Problem) -> some View {
        VStack(alignment: .leading) {
            Label(problem.title, systemImage: "exclamationmark.triangle").bold()
            Text(verbatim: [problem.what, problem.hint].joined(separator: " "))
            Button("model.again") { app.choose(id) }
        }
    }

    /// A model without a chat format completes a text; it says why it does not chat.
    @ViewBuilder private var plain: some View {
        if let format = app.host.model?.manifest.chat, !format.chats {
            VStack(alignment: .leading) {
                Text("model.plain")
                Text(verbatim: format.problem).foregroundStyle(.secondary)
            }
        }
    }
}

/// Speed and memory of the answer, while it comes.
struct StatsBar: View {
    let app: AppModel

    var body: some View {
        HStack {
            if let stats = app.chat.stats {
                if let speed = stats.tokensPerSecond { Text("stats.speed \(number(speed))") }
                if let first = stats.secondsToFirstToken { Text("stats.first \(number(first))") }
            }
            Spacer()
            TimelineView(.periodic(from: .now, by: 1)) { _ in
                Text("stats.memory \(megabytes(held)) \(megabytes(DeviceEvents.availableBytes()))")
            }
        }
        .font(.caption.monospacedDigit())
        .foregroundStyle(.secondary)
        .padding(.horizontal)
        .accessibilityElement(children: .combine)
    }

    /// Memory of the session and of expanded weights: what counts against the limit of iOS. Mapped weights do not.
    private var held: Int {
        let engine = app.chat.stats?.engine
        return (engine?.kvCacheBytes ?? 0) + (engine?.bufferBytes ?? 0) + Int(clamping: Residency.statistics.dirtyBytes)
    }

    private func number(_ value: Double) -> String { value.formatted(.number.precision(.fractionLength(1))) }
}

/// Bytes as the system writes them.
func megabytes(_ bytes: Int) -> String { Int64(bytes).formatted(.byteCount(style: .memory)) }
