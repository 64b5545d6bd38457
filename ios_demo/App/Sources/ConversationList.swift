import AppModel
import LZWKit
import SwiftUI

/// All conversations, the last changed first.
struct ConversationList: View {
    let chat: ChatModel
    @State private var renamed: Conversation?
    @State private var title = ""

    var body: some View {
        List {
            ForEach(chat.list) { row($0) }
        }
        .overlay {
            if chat.list.isEmpty {
                ContentUnavailableView(
                    "conversations.none", systemImage: "bubble.left.and.bubble.right",
                    description: Text("conversations.none.hint"))
            }
        }
        .navigationTitle("conversations.title")
        .toolbar {
            ToolbarItem(placement: .primaryAction) {
                Button { chat.new() } label: { Label("conversations.new", systemImage: "square.and.pencil") }
            }
        }
        .alert("conversations.rename", isPresented: isRenaming, presenting: renamed) { conversation in
            TextField("conversations.name", text: $title)
            Button("common.cancel", role: .cancel) {}
            Button("common.save") { chat.rename(conversation.id, to: title) }
        } message: { _ in
            Text("conversations.rename.hint")
        }
    }

    private var isRenaming: Binding<Bool> {
        Binding(get: { renamed != nil }, set: { if !$0 { renamed = nil } })
    }

    private func row(_ conversation: Conversation) -> some View {
        Button { chat.select(conversation.id) } label: {
            VStack(alignment: .leading) {
                Text(verbatim: conversation.title).lineLimit(1)
                Text(conversation.changed, style: .relative).font(.caption).foregroundStyle(.secondary)
            }
        }
        .accessibilityAddTraits(conversation.id == chat.current.id ? .isSelected : [])
        .swipeActions {
            Button(role: .destructive) { chat.delete(conversation.id) } label: {
                Label("common.delete", systemImage: "trash")
            }
            Button {
                title = conversation.title
                renamed = conversation
            } label: { Label("conversations.rename", systemImage: "pencil") }
        }
    }
}
