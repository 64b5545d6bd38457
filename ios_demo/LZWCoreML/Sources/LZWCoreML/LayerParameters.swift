import Foundation

/// The parameters of a custom layer, as version 3 of the contract has them (docs/coreml.md).
public struct LayerParameters: Equatable, Sendable {
    public static let version = 3

    public enum Kind: String, Sendable {
        case linear = "LZWLinear"
        case embedding = "LZWEmbedding"
    }

    /// Where the weights of a layer are.
    public enum Weights: Equatable, Sendable {
        case ownData
        case sharedWith(String)
        case file(String, blob: Range<Int>, scales: Range<Int>)
    }

    /// How the scales are stored (tinyqmoe_scale_type).
    public enum ScaleType: String, Sendable {
        case float32
        case ue6m10

        var bytes: Int { self == .float32 ? 4 : 2 }
    }

    public let name: String
    public let rows: Int
    public let cols: Int
    public let groupSize: Int
    public let scaleType: ScaleType
    public let int16Activations: Bool
    public let weights: Weights

    /// Reads the dictionary that Core ML hands to a layer. Throws `LayerError` with everything that is wrong.
    public init(_ given: [String: Any], of kind: Kind) throws {
        var reader = ParameterReader(given: given)
        name = reader.take("name", or: "")
        let version: Int = reader.take("version", or: 0)
        rows = reader.take("rows", or: 0)
        cols = reader.take("cols", or: 0)
        groupSize = reader.take("group_size", or: 0)
        let scales: String = reader.take("scale_type", or: "")
        scaleType = ScaleType(rawValue: scales) ?? .float32
        int16Activations = kind == .linear ? reader.take("int16_activations", or: false) : false
        weights = Self.weights(&reader)
        if version != Self.version {
            reader.problems.append("version is \(version), this app computes version \(Self.version)")
        }
        if ScaleType(rawValue: scales) == nil {
            reader.problems.append("scale_type \"\(scales)\" is unknown")
        }
        if min(rows, cols, groupSize) < 1 {
            reader.problems.append("\(rows) rows, \(cols) columns and groups of \(groupSize) are no matrix")
        }
        try reader.finish(layer: "\(kind.rawValue) \(name)")
    }

    private static func weights(_ reader: inout ParameterReader) -> Weights {
        if reader.has("weights_of") { return .sharedWith(reader.take("weights_of", or: "")) }
        guard reader.has("file") else { return .ownData }
        let file: String = reader.take("file", or: "")
        return .file(file, blob: reader.takeRange("blob"), scales: reader.takeRange("scales"))
    }
}

/// Takes parameters out of a dictionary by name and type, and gathers what is wrong.
private struct ParameterReader {
    let given: [String: Any]
    var taken: Set<String> = []
    var problems: [String] = []

    init(given: [String: Any]) { self.given = given }

    func has(_ name: String) -> Bool { given[name] != nil }

    mutating func take<Value>(_ name: String, or missing: Value) -> Value {
        taken.insert(name)
        guard let value = given[name] else {
            problems.append("the parameter \(name) is missing")
            return missing
        }
        guard let typed = value as? Value else {
            problems.append("the parameter \(name) is no \(Value.self)")
            return missing
        }
        return typed
    }

    mutating func takeRange(_ what: String) -> Range<Int> {
        let begin: Int = take("\(what)_offset", or: 0)
        let count: Int = take("\(what)_bytes", or: 0)
        let (end, overflow) = begin.addingReportingOverflow(count)
        guard begin >= 0, count > 0, !overflow else {
            problems.append("\(count) bytes at \(begin) are no place of the \(what)")
            return 0..<0
        }
        return begin..<end
    }

    func finish(layer: String) throws {
        let unknown = given.keys.filter { !taken.contains($0) }.sorted().map { "the parameter \($0) is unknown" }
        let all = problems + unknown
        guard all.isEmpty else {
            throw LayerError(layer, all.joined(separator: "; ") + "; export the model again, or update the app")
        }
    }
}
