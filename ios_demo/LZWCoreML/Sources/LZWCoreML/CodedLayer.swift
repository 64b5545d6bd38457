import Foundation

/// A custom layer without Core ML's types: what `LZWLinear` and `LZWEmbedding` do, anywhere.
///
/// Core ML calls `setWeights` before the first `evaluate`, and then evaluates one call at a time.
final class CodedLayer {
    private let kind: LayerParameters.Kind
    private let parameters: LayerParameters
    private let scope: ModelScope
    private var matrix: CodedMatrix?

    /// Throws `LayerError`, which the model's scope keeps.
    init(_ given: [String: Any], of kind: LayerParameters.Kind) throws {
        let scope = try ModelScope.ofTheLoad(layer: kind.rawValue)
        (self.kind, self.scope) = (kind, scope)
        (parameters, matrix) = try scope.noting {
            let parameters = try LayerParameters(given, of: kind)
            return (parameters, try scope.openFromFile(parameters))
        }
    }

    /// Takes the weights as Core ML holds them; it does not copy them.
    func setWeights(_ data: [Data]) throws {
        try scope.noting {
            if case .ownData = parameters.weights {
                matrix = try scope.open(parameters, data: data)
            } else if !data.isEmpty {
                throw LayerError(parameters.name, "it has weights of its own, and others elsewhere")
            }
        }
    }

    /// Shape of the output for the shape of an input: [.., rows] of a product, [.., cols] of a look-up.
    func outputShape(_ input: [Int]) throws -> [Int] {
        try scope.noting {
            switch kind {
            case .linear:
                try LayerShapes.product(
                    input, rows: parameters.rows, cols: parameters.cols, layer: parameters.name)
            case .embedding:
                try LayerShapes.lookUp(input, cols: parameters.cols, layer: parameters.name)
            }
        }
    }

    /// Computes `output`, which has the shape that `outputShape` gave, where it lies.
    func evaluate(_ input: FloatArray, into output: FloatArray) throws {
        try scope.noting {
            try LayerShapes.require(output.shape, outputShape(input.shape), layer: parameters.name)
            let matrix = try openMatrix()
            guard let from = input.values.baseAddress, let into = output.values.baseAddress else { return }
            switch kind {
            case .linear:
                try matrix.multiply(
                    from, tokens: LayerShapes.tokens(input.shape), int16: parameters.int16Activations, into: into)
            case .embedding:
                let ids = try LayerShapes.ids(UnsafeBufferPointer(input.values), layer: parameters.name)
                try matrix.lookUp(ids, into: into)
            }
        }
    }

    /// A matrix that another layer has is found at the first call: Core ML makes layers in any order.
    private func openMatrix() throws -> CodedMatrix {
        if let matrix { return matrix }
        let found = try scope.shared(parameters)
        matrix = found
        return found
    }
}

/// Float32 values of an array of Core ML, where they lie.
struct FloatArray {
    let values: UnsafeMutableBufferPointer<Float>
    let shape: [Int]

    /// Throws `LayerError` where the values have gaps between them.
    init(_ address: UnsafeMutableRawPointer, shape: [Int], strides: [Int]) throws {
        try LayerShapes.requireContiguous(shape, strides: strides)
        let count = shape.reduce(1, *)
        values = UnsafeMutableBufferPointer(start: address.assumingMemoryBound(to: Float.self), count: count)
        self.shape = shape
    }
}
