import AppModel
import SwiftUI
import UIKit

/// Conversations beside the one that is shown, and the sheets over them.
struct RootView: View {
    let app: AppModel
    @State private var sheet: Sheet?

    enum Sheet: String, Identifiable {
        case models, settings, check
        var id: String { rawValue }
    }

    var body: some View {
        NavigationSplitView {
            ConversationList(chat: app.chat)
        } detail: {
            ChatView(app: app)
                .navigationTitle(Text(verbatim: app.chat.current.title))
                .toolbar { buttons }
        }
        .sheet(item: $sheet) { SheetView(app: app, sheet: $0) }
        .problemAlert(Bindable(app.chat).problem)
        .problemAlert(Bindable(app.library).problem)
        .problemAlert(Bindable(app.settings).problem)
        .onChange(of: app.staysAwake, initial: true) { _, awake in
            UIApplication.shared.isIdleTimerDisabled = awake
        }
    }

    private var buttons: some ToolbarContent {
        ToolbarItemGroup(placement: .topBarTrailing) {
            ShareLink(item: app.chat.transcript) { Label("chat.share.all", systemImage: "square.and.arrow.up") }
            Button { sheet = .models } label: { Label("models.title", systemImage: "shippingbox") }
            Button { sheet = .check } label: { Label("check.title", systemImage: "checkmark.seal") }
            Button { sheet = .settings } label: { Label("settings.title", systemImage: "gearshape") }
        }
    }
}

/// A sheet with a button that closes it.
private struct SheetView: View {
    let app: AppModel
    let sheet: RootView.Sheet
    @Environment(\.dismiss) private var dismiss

    var body: some View {
        NavigationStack {
            Group {
                switch sheet {
                case .models: ModelsView(app: app)
                case .settings: SettingsView(model: app.settings)
                case .check: CheckView(app: app)
                }
            }
            .toolbar {
                ToolbarItem(placement: .confirmationAction) { Button("common.done") { dismiss() } }
            }
        }
    }
}

extension View {
    /// Says a problem in words, with the next step.
    func problemAlert(_ problem: Binding<Problem?>) -> some View {
        let isShown = Binding(get: { problem.wrappedValue != nil }, set: { if !$0 { problem.wrappedValue = nil } })
        return alert(
            problem.wrappedValue?.title ?? "problem.other", isPresented: isShown, presenting: problem.wrappedValue
        ) { _ in
            Button("common.ok", role: .cancel) {}
        } message: { problem in
            Text(verbatim: [problem.what, problem.hint].joined(separator: "\n"))
        }
    }
}

extension Problem {
    var title: LocalizedStringKey {
        switch kind {
        case .memory: "problem.memory"
        case .crashedLastTime: "problem.crashed"
        case .network: "problem.network"
        case .damaged: "problem.damaged"
        case .other: "problem.other"
        }
    }
}
