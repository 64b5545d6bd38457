import AppModel
import LZWKit
import SwiftUI

/// A model from an address, or from a folder of the Files app.
struct AddModelView: View {
    let library: ModelLibrary
    @Environment(\.dismiss) private var dismiss
    @State private var address = ""
    @State private var format = Package.Format.pte
    @State private var isPicking = false

    var body: some View {
        NavigationStack {
            Form {
                Section {
                    Picker("add.format", selection: $format) {
                        ForEach(Package.Format.allCases, id: \.self) { Text($0.label).tag($0) }
                    }
                } footer: { Text("add.format.hint") }
                Section("add.address") {
                    TextField("add.address.example", text: $address)
                        .textInputAutocapitalization(.never).autocorrectionDisabled().keyboardType(.URL)
                    Button("add.download") {
                        library.add(address: address, format: format)
                        dismiss()
                    }
                    .disabled(address.isEmpty)
                }
                Section("add.folder") {
                    Button("add.folder.pick") { isPicking = true }
                }
            }
            .navigationTitle("models.add")
            .toolbar {
                ToolbarItem(placement: .cancellationAction) { Button("common.cancel") { dismiss() } }
            }
            .fileImporter(isPresented: $isPicking, allowedContentTypes: [.folder]) { picked in
                switch picked {
                case .success(let folder):
                    library.add(folder: folder, format: format)
                    dismiss()
                case .failure(let error): library.problem = Problem(error)
                }
            }
        }
    }
}
