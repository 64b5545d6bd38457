#if canImport(CoreML)
import CoreML
import Foundation
import LZWKit

extension CompiledModels {
    /// Loads the package with custom layers, which the bundle has whole; compiles it at the first time.
    public func openCustomOp(_ bundle: ModelBundle) async throws -> CustomOpEngine {
        guard let package = bundle.manifest.package(.customOp) else { throw missing(.customOp, bundle) }
        let compiled = try await model(
            digest: bundle.manifest.sha256, of: .customOp,
            package: { bundle.file(package.path) }, compile: MLModel.compileModel)
        return try CustomOpEngine(bundle, compiled: compiled)
    }

    /// Loads the ML Program. At the first time `expand` makes the package (`Expander`), which is compiled and then
    /// deleted: its weights are in the compiled form.
    @available(iOS 18, macOS 15, *)
    public func openMLProgram(_ bundle: ModelBundle, expand: () async throws -> URL) async throws -> MLProgramEngine {
        let compiled = try await model(
            digest: bundle.manifest.sha256, of: .mlprogram, package: expand,
            compile: { package in
                let compiled = try await MLModel.compileModel(at: package)
                try FileManager.default.removeItem(at: package)
                return compiled
            })
        return try MLProgramEngine(bundle, compiled: compiled)
    }
}
#endif
