// What LZWCoreML uses of Core ML, declared for type checks where there is no Apple SDK. Nothing here runs.
import Foundation

public protocol MLCustomLayer {
    init(parameters: [String: Any]) throws
    func setWeightData(_ weights: [Data]) throws
    func outputShapes(forInputShapes inputShapes: [[NSNumber]]) throws -> [[NSNumber]]
    func evaluate(inputs: [MLMultiArray], outputs: [MLMultiArray]) throws
}

public enum MLMultiArrayDataType: Int, Sendable {
    case double, float32, float16, int32, int8
}

open class MLMultiArray: NSObject {
    public init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws { fatalError() }
    public init(
        dataPointer: UnsafeMutableRawPointer, shape: [NSNumber], dataType: MLMultiArrayDataType, strides: [NSNumber],
        deallocator: ((UnsafeMutableRawPointer) -> Void)? = nil
    ) throws { fatalError() }
    open var dataType: MLMultiArrayDataType { fatalError() }
    open var shape: [NSNumber] { fatalError() }
    open var strides: [NSNumber] { fatalError() }
    open var count: Int { fatalError() }
    open var dataPointer: UnsafeMutableRawPointer { fatalError() }
    public func withUnsafeBufferPointer<S, R>(
        ofType type: S.Type, _ body: (UnsafeBufferPointer<S>) throws -> R
    ) rethrows -> R { fatalError() }
}

open class MLFeatureValue: NSObject {
    open var multiArrayValue: MLMultiArray? { fatalError() }
}

public protocol MLFeatureProvider {
    func featureValue(for featureName: String) -> MLFeatureValue?
}

open class MLDictionaryFeatureProvider: NSObject, MLFeatureProvider {
    public init(dictionary: [String: Any]) throws { fatalError() }
    open func featureValue(for featureName: String) -> MLFeatureValue? { fatalError() }
}

public enum MLComputeUnits: Int, Sendable {
    case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine
}

open class MLModelConfiguration: NSObject {
    open var computeUnits: MLComputeUnits = .all
    @available(iOS 18, macOS 15, *)
    open var functionName: String?
}

open class MLPredictionOptions: NSObject {
    @available(iOS 16, macOS 13, *)
    open var outputBackings: [String: Any] = [:]
}

@available(iOS 18, macOS 15, *)
open class MLState: NSObject {}

open class MLModel: NSObject {
    public init(contentsOf url: URL, configuration: MLModelConfiguration) throws { fatalError() }
    public class func compileModel(at modelURL: URL) async throws -> URL { fatalError() }
    open func prediction(from input: any MLFeatureProvider, options: MLPredictionOptions) throws -> any MLFeatureProvider {
        fatalError()
    }
    @available(iOS 18, macOS 15, *)
    open func prediction(from input: any MLFeatureProvider, using state: MLState) throws -> any MLFeatureProvider {
        fatalError()
    }
    @available(iOS 18, macOS 15, *)
    open func makeState() -> MLState { fatalError() }
}
