#if canImport(CoreML)
import CoreML
import Foundation
import LZWKit

/// The package with custom layers as an engine: LZW codes in memory, products by the C++ core, on the CPU.
///
/// The KV cache is this engine's, float32 [context, layers, 2, KV heads, head size]; Core ML writes the rows
/// of new tokens into their place in it.
public final class CustomOpEngine: Engine {
    private let scope: ModelScope
    private var model: MLModel?
    private let cache: MLMultiArray
    private let rowShape: [Int]
    private let mostTokens: Int
    private let mappedBytes: Int
    private var fill: CacheFill

    /// Loads a compiled package and computes one token, so that what is wrong shows now. Blocks its thread.
    /// Throws `LayerError`, `BundleError`, or what Core ML says.
    public init(_ bundle: ModelBundle, compiled: URL) throws {
        guard let package = bundle.manifest.package(.customOp) else { throw missing(.customOp, bundle) }
        let network = bundle.manifest.network
        let shape = [bundle.manifest.interface.context, network.layers, 2, network.kvHeads, network.headDim]
        rowShape = Array(shape.dropFirst())
        cache = try zeros(shape)
        mostTokens = package.prefillTokens
        mappedBytes = bundle.bytes(of: package)
        fill = CacheFill(context: shape[0], vocab: bundle.manifest.interface.vocabSize)
        scope = ModelScope(folder: bundle.folder)
        _ = [LZWLinear.self, LZWEmbedding.self] as [AnyClass]  // that the linker keeps them: Core ML knows only their names
        let configuration = MLModelConfiguration()
        configuration.computeUnits = .cpuOnly  // the GPU holds token ids in half precision, exact to 2048 only
        try scope.loading {
            model = try MLModel(contentsOf: compiled, configuration: configuration)
            _ = try predict([0], at: 0)
        }
    }

    public func feed(_ tokens: [Int32], logits: Bool) throws -> [Float] {
        try fill.require(tokens)
        let begin = ContinuousClock.now, position = fill.positions
        var last: [Float] = []
        for call in CallPlan.network(tokens.count, most: mostTokens) {
            last = try predict(Array(tokens[call.tokens]), at: position + call.tokens.lowerBound)
        }
        fill.add(tokens.count, took: begin.duration(to: .now))
        return logits ? last : []
    }

    public func step(_ token: Int32) throws -> Int32 { try best(of: feed([token], logits: true)) }
    public func trim(to positions: Int) throws { try fill.trim(to: positions) }

    public var state: EngineState { fill.state(kvCacheBytes: 4 * cache.count, mappedBytes: mappedBytes) }

    public func close() { model = nil }

    /// Logits of the last token; the cache's rows from `position` on are written by Core ML itself.
    private func predict(_ tokens: [Int32], at position: Int) throws -> [Float] {
        guard let model else { throw unloaded }
        let positions = tokens.indices.map { Int32(position + $0) }
        let inputs = try MLDictionaryFeatureProvider(dictionary: [
            "input_ids": int32Array(tokens, shape: [tokens.count]),
            "positions": int32Array(positions, shape: [tokens.count]),
            "kv_cache": cache,
        ])
        let options = MLPredictionOptions()
        options.outputBackings = ["kv_new": try rows(position, count: tokens.count)]
        do {
            return try floats(of: model.prediction(from: inputs, options: options), "logits")
        } catch { throw scope.takeProblem() ?? error }
    }

    /// A part of the cache as an array of its own, without a copy.
    private func rows(_ position: Int, count: Int) throws -> MLMultiArray {
        let rowValues = rowShape.reduce(1, *)
        return try floatArray(at: cache.dataPointer + 4 * position * rowValues, [count] + rowShape, deallocator: nil)
    }
}
#endif
