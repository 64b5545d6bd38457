#if canImport(CoreML)
import CoreML
import Foundation
import LZWKit

/// The ML Program as an engine: functions `decode` and `prefill`, which share weights and a state.
@available(iOS 18, macOS 15, *)
public final class MLProgramEngine: Engine {
    private var functions: (decode: MLModel, prefill: MLModel)?
    private let cache: MLState
    private let prefillTokens: Int
    private let kvCacheBytes: Int
    private let mappedBytes: Int
    private var fill: CacheFill

    /// Loads both functions of a compiled package and computes one token, so that what is wrong shows now.
    /// The first load on a device can take minutes: Core ML prepares the program for its processors.
    public init(_ bundle: ModelBundle, compiled: URL, units: MLComputeUnits = .all) throws {
        guard let package = bundle.manifest.package(.mlprogram) else { throw missing(.mlprogram, bundle) }
        let decode = try Self.function("decode", of: compiled, units)
        let prefill = try Self.function("prefill", of: compiled, units)
        functions = (decode, prefill)
        cache = decode.makeState()
        prefillTokens = package.prefillTokens
        kvCacheBytes = package.kvCacheBytes
        mappedBytes = bundle.bytes(of: package)
        fill = CacheFill(context: bundle.manifest.interface.context, vocab: bundle.manifest.interface.vocabSize)
        _ = try predict([0][...], PackageCall(tokens: 0..<1, isPrefill: false), at: 0)
    }

    public func feed(_ tokens: [Int32], logits: Bool) throws -> [Float] {
        try fill.require(tokens)
        let begin = ContinuousClock.now, position = fill.positions
        var last: [Float] = []
        let calls = CallPlan.program(tokens.count, position: position, size: prefillTokens, context: fill.context)
        for call in calls {
            last = try predict(tokens[call.tokens], call, at: position + call.tokens.lowerBound)
        }
        fill.add(tokens.count, took: begin.duration(to: .now))
        return logits ? last : []
    }

    public func step(_ token: Int32) throws -> Int32 { try best(of: feed([token], logits: true)) }
    public func trim(to positions: Int) throws { try fill.trim(to: positions) }
    public var state: EngineState { fill.state(kvCacheBytes: kvCacheBytes, mappedBytes: mappedBytes) }
    public func close() { functions = nil }

    private static func function(_ name: String, of compiled: URL, _ units: MLComputeUnits) throws -> MLModel {
        let configuration = MLModelConfiguration()
        configuration.functionName = name
        configuration.computeUnits = units
        return try MLModel(contentsOf: compiled, configuration: configuration)
    }

    /// Logits of the last token of a call. A prefill is padded with zeros, and told which token is the last.
    private func predict(_ tokens: ArraySlice<Int32>, _ call: PackageCall, at position: Int) throws -> [Float] {
        guard let functions else { throw unloaded }
        let size = call.isPrefill ? prefillTokens : 1
        var inputs: [String: MLMultiArray] = [
            "input_ids": try int32Array(CallPlan.padded(tokens, to: size), shape: [1, size]),
            "position": try int32Array([Int32(position)], shape: [1]),
        ]
        if call.isPrefill { inputs["last"] = try int32Array([Int32(tokens.count - 1)], shape: [1]) }
        let features = try MLDictionaryFeatureProvider(dictionary: inputs)
        let function = call.isPrefill ? functions.prefill : functions.decode
        return try floats(of: function.prediction(from: features, using: cache), "logits")
    }
}
#endif
