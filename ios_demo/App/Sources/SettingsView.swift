import AppModel
import LZWKit
import SwiftUI

/// System prompt and sampling. They are kept at once, and hold from the next answer on.
struct SettingsView: View {
    @Bindable var model: SettingsModel

    var body: some View {
        Form {
            Section {
                TextField("settings.system", text: $model.settings.systemPrompt, axis: .vertical).lineLimit(2...8)
            } header: { Text("settings.system") } footer: { Text("settings.system.hint") }
            Section("settings.sampling") {
                Slider(value: $model.settings.sampling.temperature, in: 0...2, step: 0.1) {
                    Text("settings.temperature")
                }
                LabeledContent("settings.temperature", value: number(model.settings.sampling.temperature))
                Slider(value: $model.settings.sampling.topP, in: 0.05...1, step: 0.05) { Text("settings.topP") }
                LabeledContent("settings.topP", value: number(model.settings.sampling.topP))
                Stepper(
                    "settings.topK \(String(model.settings.sampling.topK))", value: $model.settings.sampling.topK,
                    in: 0...200, step: 10)
                Stepper(
                    "settings.seed \(String(model.settings.sampling.seed))", value: $model.settings.sampling.seed,
                    in: 0...UInt64(UInt32.max), step: 1)
                Stepper(
                    "settings.limit \(String(model.settings.maxNewTokens))", value: $model.settings.maxNewTokens,
                    in: 32...4096, step: 32)
            }
            Button("settings.reset", role: .destructive) { model.reset() }
        }
        .navigationTitle("settings.title")
    }

    private func number(_ value: Double) -> String { value.formatted(.number.precision(.fractionLength(2))) }
}
