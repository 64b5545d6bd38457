import AppModel
import LZWKit
import SwiftUI

/// The conversation, the model's state above it, and the field for the next question below.
struct ChatView: View {
    let app: AppModel
    @State private var draft = ""
    /// The question that is being changed.
    @State private var edited: Int?

    private let end = "end"

    var body: some View {
        VStack(spacing: 0) {
            ModelBanner(app: app)
            messages
            StatsBar(app: app)
            composer
        }
        .onChange(of: app.chat.current.id) { stopEditing() }
    }

    private var messages: some View {
        ScrollViewReader { proxy in
            ScrollView {
                LazyVStack(alignment: .leading, spacing: 12) {
                    ForEach(Array(app.chat.current.messages.enumerated()), id: \.offset) { index, message in
                        MessageView(message: message) { startEditing(index, message) }
                    }
                    streaming
                    ForEach(app.chat.notes, id: \.self) { note in
                        Label { Text(verbatim: note) } icon: { Image(systemName: "info.circle") }
                            .font(.footnote).foregroundStyle(.secondary)
                    }
                    Color.clear.frame(height: 1).id(end)
                }
                .padding()
            }
            .onChange(of: app.chat.answer) { proxy.scrollTo(end) }
        }
    }

    @ViewBuilder private var streaming: some View {
        switch app.chat.phase {
        case .idle: EmptyView()
        case .reading(let done, let total):
            ProgressView("chat.reading", value: Double(done), total: Double(max(total, 1)))
        case .writing:
            MessageView(message: Message(.assistant, app.chat.answer), edit: {})
                .accessibilityLabel("chat.writing")
        }
    }

    private var composer: some View {
        HStack(alignment: .bottom) {
            if edited != nil {
                Button { stopEditing() } label: { Image(systemName: "xmark.circle") }
                    .accessibilityLabel("chat.edit.cancel")
            }
            TextField("chat.placeholder", text: $draft, axis: .vertical)
                .textFieldStyle(.roundedBorder).lineLimit(1...6)
            if app.chat.isAnswering {
                Button { app.chat.stop() } label: { Image(systemName: "stop.circle.fill").font(.title2) }
                    .accessibilityLabel("chat.stop")
            } else {
                regenerate
                Button { send() } label: { Image(systemName: "arrow.up.circle.fill").font(.title2) }
                    .accessibilityLabel("chat.send")
                    .disabled(!app.chat.canAnswer)
            }
        }
        .padding()
    }

    private var regenerate: some View {
        Button { app.chat.regenerate() } label: { Image(systemName: "arrow.clockwise") }
            .accessibilityLabel("chat.regenerate")
            .disabled(!app.chat.canRegenerate)
    }

    private func startEditing(_ index: Int, _ message: Message) {
        guard !app.chat.isAnswering else { return }
        (draft, edited) = (message.content, index)
    }

    private func stopEditing() { (draft, edited) = ("", nil) }

    private func send() {
        if let edited {
            app.chat.edit(at: edited, content: draft)
            stopEditing()
        } else if app.chat.send(draft) {
            draft = ""
        }
    }
}
