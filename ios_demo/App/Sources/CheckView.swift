import AppModel
import SwiftUI

/// "Check this model": the verdicts of `tinyqmoe parity` on this device, with a report to share.
struct CheckView: View {
    let app: AppModel

    var body: some View {
        Form {
            Section {
                Button("check.run") { app.check.run() }
                    .disabled(app.host.model == nil || app.check.isRunning || app.chat.isAnswering)
                if app.check.isRunning { Button("chat.stop") { app.check.stop() } }
            } footer: { Text("check.hint") }
            outcome
        }
        .navigationTitle("check.title")
    }

    @ViewBuilder private var outcome: some View {
        switch app.check.stage {
        case .idle: EmptyView()
        case .running(let done, let total):
            ProgressView("check.running", value: Double(done), total: Double(max(total, 1)))
        case .failed(let problem):
            Label(problem.title, systemImage: "exclamationmark.triangle")
            Text(verbatim: [problem.what, problem.hint].joined(separator: "\n"))
        case .done(let report):
            Label(
                report.passed ? "check.passed" : "check.failed",
                systemImage: report.passed ? "checkmark.seal.fill" : "xmark.seal.fill")
            if report.sameBits { Text("check.bits") }
            Text(verbatim: report.text).font(.system(.footnote, design: .monospaced)).textSelection(.enabled)
            ShareLink(item: report.text) { Label("check.share", systemImage: "square.and.arrow.up") }
            if let json = try? report.json() {
                ShareLink(item: String(decoding: json, as: UTF8.self)) {
                    Label("check.share.json", systemImage: "curlybraces")
                }
            }
        }
    }
}
