import Foundation

/// A safetensors file, mapped: a length in 8 bytes, a JSON object of that length, and the values.
struct Safetensors {
    private let data: Data
    private let header: JSON
    private let begin: Int

    /// Throws BundleError.
    init(_ url: URL) throws {
        guard let data = try? Data(contentsOf: url, options: .alwaysMapped), data.count >= 8 else {
            throw Self.damaged("it is missing, or too short")
        }
        let length = data.prefix(8).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        guard length <= UInt64(data.count - 8), let header = try? JSON.parse(data.subdata(in: 8..<8 + Int(length))) else {
            throw Self.damaged("its header cannot be read")
        }
        (self.data, self.header, begin) = (data, header, 8 + Int(length))
    }

    var names: [String] { header.members?.map(\.name) ?? [] }

    /// The bytes of a tensor of a type and a shape. Throws BundleError for another.
    func values(_ name: String, _ type: String, _ shape: [Int]) throws -> Data {
        let found = try entry(name)
        guard found.type == type, found.shape == shape else {
            throw Self.damaged("\(name) is \(found.type) \(found.shape), expected \(type) \(shape)")
        }
        return found.values
    }

    /// A list of int64.
    func integers(_ name: String) throws -> [Int32] {
        let found = try entry(name)
        guard found.type == "I64", found.shape.count == 1 else { throw Self.damaged("\(name) is no list of int64") }
        return try (0..<found.shape[0]).map { i in
            let value = found.values.dropFirst(8 * i).prefix(8).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
            guard let id = Int32(exactly: value) else { throw Self.damaged("\(name) holds \(value)") }
            return id
        }
    }

    private func entry(_ name: String) throws -> (type: String, shape: [Int], values: Data) {
        guard let json = header[name], let type = json["dtype"]?.string,
            let shape = json["shape"]?.array?.compactMap(\.int), shape.allSatisfy({ (0...1 << 31).contains($0) }),
            let offsets = json["data_offsets"]?.array?.compactMap(\.int), offsets.count == 2,
            let size = ["I64": 8, "F32": 4, "U8": 1][type], 0 <= offsets[0], offsets[0] <= offsets[1],
            offsets[1] <= data.count - begin, shape.reduce(size, *) == offsets[1] - offsets[0]
        else { throw Self.damaged("\(name) is missing, or does not lie where its header says") }
        return (type, shape, data[begin + offsets[0]..<begin + offsets[1]])
    }

    static func damaged(_ what: String) -> BundleError {
        BundleError(.damaged, "\(Manifest.referenceName) cannot be read: \(what)", hint: "Load the model again.")
    }
}
