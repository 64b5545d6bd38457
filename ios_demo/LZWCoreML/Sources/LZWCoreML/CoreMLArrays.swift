#if canImport(CoreML)
import CoreML
import Foundation
import LZWKit

/// Int32 values as an array of Core ML.
func int32Array(_ values: [Int32], shape: [Int]) throws -> MLMultiArray {
    let array = try MLMultiArray(shape: shape.map { NSNumber(value: $0) }, dataType: .int32)
    array.dataPointer.withMemoryRebound(to: Int32.self, capacity: values.count) { address in
        for (i, value) in values.enumerated() { address[i] = value }
    }
    return array
}

/// Values of an output as float32, in their order. Throws `BundleError` where it is absent or of another type.
func floats(of features: any MLFeatureProvider, _ name: String) throws -> [Float] {
    guard let array = features.featureValue(for: name)?.multiArrayValue else {
        throw BundleError(.notValid, "the package gives no \(name)", hint: "Export the model again.")
    }
    switch array.dataType {
    case .float32: return array.withUnsafeBufferPointer(ofType: Float.self) { Array($0) }
    case .float16: return array.withUnsafeBufferPointer(ofType: Float16.self) { $0.map(Float.init) }
    default: throw BundleError(.notValid, "\(name) is neither float32 nor float16", hint: "Export the model again.")
    }
}

let unloaded = BundleError(.notSupported, "the model was unloaded", hint: "Load it again.")

func missing(_ format: Package.Format, _ bundle: ModelBundle) -> BundleError {
    BundleError(
        .notSupported, "\(bundle.manifest.modelName) has no package of the format \(format.rawValue)",
        hint: "Export it again with --target ios --coreml-format both.")
}

extension ModelBundle {
    /// Bytes of a package's files.
    func bytes(of package: Package) -> Int {
        let names = Set(package.files)
        return manifest.files.filter { names.contains($0.path) }.reduce(0) { $0 + $1.byteCount }
    }
}
#endif
