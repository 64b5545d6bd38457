import AppModel
import Foundation
import LZWCoreML
import LZWKit
import UIKit

/// Opens a model with the engine of its package.
struct ModelOpening: Sendable {
    let folders: AppFolders

    func open(_ bundle: ModelBundle, _ format: Package.Format) async throws -> LoadedModel {
        let device = await UIDevice.current.model
        let session = try await session(bundle, format)
        return LoadedModel(session, of: bundle, format, device: device)
    }

    private func session(_ bundle: ModelBundle, _ format: Package.Format) async throws -> Session {
        let compiled = CompiledModels(folder: folders.compiled)
        compiled.removeAll(but: try digests())
        switch format {
        case .pte:
            return try await Session.open(bundle)
        case .customOp:
            return Session(
                manifest: bundle.manifest, tokenizer: try bundle.tokenizer(),
                engine: try await compiled.openCustomOp(bundle))
        case .mlprogram:
            guard #available(iOS 18, *) else {
                throw BundleError(
                    .notSupported, "an ML Program with states needs iOS 18", hint: "Import another package of the model.")
            }
            return Session(
                manifest: bundle.manifest, tokenizer: try bundle.tokenizer(),
                engine: try await compiled.openMLProgram(bundle) { try expand(bundle) })
        }
    }

    /// Of the models that are here: compiled forms of others go.
    private func digests() throws -> [String] {
        try BundleStore(folder: folders.models).models().compactMap { try? $0.bundle.get().manifest.sha256 }
    }

    /// Rebuilds the package from its coded weights; it goes on where an earlier start was ended.
    private func expand(_ bundle: ModelBundle) throws -> URL {
        let expander = try Expander(bundle)
        try expander.run(to: expander.defaultTarget)
        return expander.defaultTarget
    }
}
