import Foundation

/// The recipe by which a template and a coded file become a Core ML package: `expand.json`. Paths are relative to the bundle.
struct Recipe: Decodable, Equatable {
    /// `byteCount` bytes of a weight file, and the bytes of the coded file that they are made from.
    struct Piece: Decodable, Equatable {
        /// "bytes" as they are, or the levels of a TQLZ blob as "int8", "int4" or "uint2".
        enum Form: String, Decodable { case bytes, int8, int4, uint2 }
        let form: Form
        let byteCount, codedOffset, codedBytes: Int

        enum CodingKeys: String, CodingKey {
            case form, byteCount = "n_bytes", codedOffset = "coded_offset", codedBytes = "coded_bytes"
        }
    }

    struct WeightFile: Decodable, Equatable {
        let path: String
        let byteCount: Int
        let sha256: String
        let pieces: [Piece]

        enum CodingKeys: String, CodingKey { case path, byteCount = "n_bytes", sha256, pieces }
    }

    let version: Int
    let template, package, codedFile: String
    let weightFiles: [WeightFile]

    enum CodingKeys: String, CodingKey {
        case version, template, package, codedFile = "coded_file", weightFiles = "weight_files"
    }

    /// Throws BundleError for what is no recipe of this version, with all that is wrong.
    init(data: Data) throws {
        do { self = try JSONDecoder().decode(Recipe.self, from: data) } catch {
            throw BundleError(.damaged, "the recipe of the weights is damaged", hint: "Load the model again.")
        }
        let problems = self.problems
        guard problems.isEmpty else {
            throw BundleError(
                .notValid, "the recipe of the weights is not valid", problems: problems, hint: "Export the model again.")
        }
    }

    var totalBytes: Int { weightFiles.reduce(0) { $0 + $1.byteCount } }

    private var problems: [String] {
        var problems = version == 1 ? [] : ["version \(version), expected 1"]
        let paths = [template, package, codedFile] + weightFiles.map(\.path)
        problems += paths.filter { $0.hasPrefix("/") || $0.split(separator: "/").contains("..") || $0.isEmpty }.map {
            "\($0) is outside the bundle"
        }
        problems += [template, package].filter { $0.contains("/") || !$0.hasSuffix(".mlpackage") }.map {
            "\($0) is not the name of a package"
        }
        if codedFile.contains("/") { problems.append("\(codedFile) is not the name of a file of the bundle") }
        if template == package { problems.append("the template is the package") }
        for file in weightFiles {
            let numbers = file.pieces.flatMap { [$0.byteCount, $0.codedOffset, $0.codedBytes] }
            let isCounted = numbers.allSatisfy { (0...1 << 48).contains($0) }
            if !isCounted || file.pieces.reduce(0, { $0 + $1.byteCount }) != file.byteCount {
                problems.append("\(file.path): its pieces do not sum to \(file.byteCount) bytes")
            }
        }
        return problems
    }
}
