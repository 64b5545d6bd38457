#if canImport(CoreML)
import CoreML
import Foundation

// Core ML finds these classes by their Objective-C names, which the package has. They run on the CPU only:
// there is no `encode` for Metal, and the engine loads the model with `.cpuOnly`.

/// The layer `LZWLinear` of the package with custom layers: x [.., cols] -> x W^T [.., rows], float32.
#if canImport(ObjectiveC)
@objc(LZWLinear)
#endif
public final class LZWLinear: NSObject, MLCustomLayer {
    private let layer: CodedLayer

    public init(parameters: [String: Any]) throws {
        layer = try CodedLayer(parameters, of: .linear)
        super.init()
    }

    public func setWeightData(_ weights: [Data]) throws { try layer.setWeights(weights) }

    public func outputShapes(forInputShapes inputShapes: [[NSNumber]]) throws -> [[NSNumber]] {
        try layer.outputShapes(inputShapes)
    }

    public func evaluate(inputs: [MLMultiArray], outputs: [MLMultiArray]) throws {
        try layer.evaluate(inputs, into: outputs)
    }
}

/// The layer `LZWEmbedding`: token ids [..], as floats -> rows of the matrix [.., cols], float32.
#if canImport(ObjectiveC)
@objc(LZWEmbedding)
#endif
public final class LZWEmbedding: NSObject, MLCustomLayer {
    private let layer: CodedLayer

    public init(parameters: [String: Any]) throws {
        layer = try CodedLayer(parameters, of: .embedding)
        super.init()
    }

    public func setWeightData(_ weights: [Data]) throws { try layer.setWeights(weights) }

    public func outputShapes(forInputShapes inputShapes: [[NSNumber]]) throws -> [[NSNumber]] {
        try layer.outputShapes(inputShapes)
    }

    public func evaluate(inputs: [MLMultiArray], outputs: [MLMultiArray]) throws {
        try layer.evaluate(inputs, into: outputs)
    }
}

extension CodedLayer {
    func outputShapes(_ inputs: [[NSNumber]]) throws -> [[NSNumber]] {
        try inputs.map { try outputShape($0.map(\.intValue)).map { NSNumber(value: $0) } }
    }

    func evaluate(_ inputs: [MLMultiArray], into outputs: [MLMultiArray]) throws {
        try evaluate(FloatArray(only: inputs), into: FloatArray(only: outputs))
    }
}

extension FloatArray {
    /// The one array of a layer's inputs or outputs.
    init(only arrays: [MLMultiArray]) throws {
        guard arrays.count == 1, let array = arrays.first, array.dataType == .float32 else {
            throw LayerError("custom layer", "it got \(arrays.count) arrays, expected one of float32")
        }
        try self.init(array.dataPointer, shape: array.shape.map(\.intValue), strides: array.strides.map(\.intValue))
    }
}
#endif
