import AppModel
import LZWKit
import SwiftUI

/// The models on this device, those on their way, and how to add one.
struct ModelsView: View {
    let app: AppModel
    @State private var isAdding = false

    var body: some View {
        List {
            if !app.library.imports.isEmpty {
                Section("models.imports") {
                    ForEach(app.library.imports) { ImportRowView(library: app.library, row: $0) }
                }
            }
            Section("models.here") {
                ForEach(app.library.models) { ModelRowView(app: app, model: $0) }
            }
        }
        .overlay {
            if app.library.models.isEmpty, app.library.imports.isEmpty {
                ContentUnavailableView(
                    "models.none", systemImage: "shippingbox", description: Text("models.none.hint"))
            }
        }
        .navigationTitle("models.title")
        .toolbar {
            ToolbarItem(placement: .primaryAction) {
                Button { isAdding = true } label: { Label("models.add", systemImage: "plus") }
            }
        }
        .sheet(isPresented: $isAdding) { AddModelView(library: app.library) }
    }
}

private struct ModelRowView: View {
    let app: AppModel
    let model: StoredBundle

    var body: some View {
        Button { app.choose(model.id) } label: {
            VStack(alignment: .leading) {
                HStack {
                    Text(verbatim: model.id).bold()
                    if app.host.id == model.id { Image(systemName: "checkmark").accessibilityLabel("models.chosen") }
                }
                Text(verbatim: megabytes(model.byteCount)).font(.caption)
                details
            }
        }
        .disabled(app.host.isLoading)
        .swipeActions {
            Button(role: .destructive) {
                Task { await app.library.delete(model.id) }
            } label: { Label("common.delete", systemImage: "trash") }
        }
    }

    /// The forecast of memory, or what is wrong with the model.
    @ViewBuilder private var details: some View {
        switch model.bundle {
        case .success(let bundle):
            if let format = bundle.installedFormat, let forecast = forecast(bundle, format) {
                Text(format.label).font(.caption)
                Text(verbatim: forecast.words).font(.caption)
                    .foregroundStyle(forecast.fits ? Color.secondary : Color.red)
            }
        case .failure(let problem):
            Text(verbatim: problem.localizedDescription).font(.caption).foregroundStyle(.red)
        }
    }

    private func forecast(_ bundle: ModelBundle, _ format: Package.Format) -> LoadForecast? {
        try? LoadForecast(bundle.manifest, format, limitBytes: DeviceEvents.availableBytes())
    }
}

private struct ImportRowView: View {
    let library: ModelLibrary
    let row: ImportRow

    var body: some View {
        VStack(alignment: .leading) {
            Text(verbatim: row.id).bold()
            ProgressView(value: row.fraction)
                .accessibilityLabel("models.progress \(row.id)")
            Text("models.bytes \(megabytes(row.doneBytes)) \(megabytes(row.totalBytes ?? 0))").font(.caption)
            if case .failed(let problem) = row.stage {
                Text(verbatim: [problem.what, problem.hint].joined(separator: " "))
                    .font(.caption).foregroundStyle(.red)
            }
            HStack {
                if row.stage == .running {
                    Button("models.pause") { library.pause(row.id) }
                } else {
                    Button("models.resume") { library.resume(row.id) }
                }
                Spacer()
                Button("common.delete", role: .destructive) { Task { await library.delete(row.id) } }
            }
            .buttonStyle(.borderless)
        }
    }
}

extension Package.Format {
    var label: LocalizedStringKey {
        switch self {
        case .pte: "format.core"
        case .mlprogram: "format.mlprogram"
        case .customOp: "format.custom"
        }
    }
}
