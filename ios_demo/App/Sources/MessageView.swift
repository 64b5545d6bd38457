import LZWKit
import SwiftUI
import UIKit

/// A message with what one can do with it.
struct MessageView: View {
    let message: Message
    let edit: () -> Void

    private var isQuestion: Bool { message.role == .user }

    var body: some View {
        Group {
            if isQuestion { Text(verbatim: message.content) } else { MarkdownView(text: message.content) }
        }
        .textSelection(.enabled)
        .padding(10)
        .background(isQuestion ? Color.accentColor.opacity(0.15) : Color.secondary.opacity(0.1))
        .clipShape(RoundedRectangle(cornerRadius: 12))
        .frame(maxWidth: .infinity, alignment: isQuestion ? .trailing : .leading)
        .contextMenu {
            Button { UIPasteboard.general.string = message.content } label: {
                Label("chat.copy", systemImage: "doc.on.doc")
            }
            ShareLink(item: message.content) { Label("chat.share", systemImage: "square.and.arrow.up") }
            if isQuestion {
                Button { edit() } label: { Label("chat.edit", systemImage: "pencil") }
            }
        }
        .accessibilityElement(children: .combine)
        .accessibilityHint(isQuestion ? "chat.question" : "chat.answer")
    }
}

/// Simple Markdown: what `Markdown` of LZWKit knows.
struct MarkdownView: View {
    let text: String

    var body: some View {
        VStack(alignment: .leading, spacing: 8) {
            ForEach(Array(Markdown.blocks(text).enumerated()), id: \.offset) { _, block in view(of: block) }
        }
    }

    @ViewBuilder private func view(of block: MarkdownBlock) -> some View {
        switch block {
        case .paragraph(let spans): line(spans)
        case .heading(let level, let spans): line(spans).font(level < 3 ? .headline : .subheadline).bold()
        case .item(let marker, let depth, let spans):
            HStack(alignment: .top) {
                Text(verbatim: marker)
                line(spans)
            }
            .padding(.leading, CGFloat(16 * depth))
        case .code(_, let code):
            ScrollView(.horizontal) { Text(verbatim: code).font(.system(.callout, design: .monospaced)) }
                .padding(8)
                .background(Color.secondary.opacity(0.12))
                .clipShape(RoundedRectangle(cornerRadius: 6))
        }
    }

    private func line(_ spans: [MarkdownSpan]) -> Text {
        spans.reduce(Text(verbatim: "")) { $0 + styled($1) }
    }

    private func styled(_ span: MarkdownSpan) -> Text {
        let text = Text(verbatim: span.text)
        switch span.style {
        case .plain: return text
        case .bold: return text.bold()
        case .italic: return text.italic()
        case .code: return text.font(.system(.body, design: .monospaced))
        }
    }
}
