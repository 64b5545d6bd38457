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

/// Float32 values at an address, row by row, as an array of Core ML.
func floatArray(
    at address: UnsafeMutableRawPointer, _ shape: [Int], deallocator: ((UnsafeMutableRawPointer) -> Void)?
) throws -> MLMultiArray {
    let strides = shape.indices.map { shape[($0 + 1)...].reduce(1, *) }
    return try MLMultiArray(
        dataPointer: address, shape: shape.map { NSNumber(value: $0) }, dataType: .float32,
        strides: strides.map { NSNumber(value: $0) }, deallocator: deallocator)
}

/// Zeros, float32, whose pages are not taken before they are written. Core ML's own arrays begin with anything, and
/// attention multiplies unused slots of a cache by 0: what they hold must be finite.
func zeros(_ shape: [Int]) throws -> MLMultiArray {
    guard let address = calloc(shape.reduce(1, *), MemoryLayout<Float>.size) else {
        throw BundleError(
            .outOfMemory, "there is no memory for the KV cache", hint: "Export the model with a shorter context.")
    }
    return try floatArray(at: address, shape) { free($0) }
}

/// Values of an output as float32, in their order. Throws `BundleError` where it is absent or of another type.
func floats(of features: any MLFeatureProvider, _ name: String) throws -> [Float] {
    guard let array = features.featureValue(for: name)?.multiArrayValue else {
        throw BundleError(.notValid, "the package gives no \(name)", hint: "Export the model again.")
    }
    switch array.dataType {
    case .float32: return array.withUnsafeBufferPointer(ofType: Float.self) { Array($0.prefix(array.count)) }
    case .float16: return array.withUnsafeBufferPointer(ofType: Float16.self) { $0.prefix(array.count).map(Float.init) }
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
