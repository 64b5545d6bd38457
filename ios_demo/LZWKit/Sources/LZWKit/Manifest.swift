import Foundation

/// One file of a bundle; its path is relative to the bundle.
public struct FileEntry: Equatable, Hashable, Sendable {
    public let path: String
    public let byteCount: Int
    public let sha256: String
}

/// What all packages of a bundle share.
public struct Interface: Equatable, Sendable {
    /// Positions of the KV cache.
    public let context: Int
    public let vocabSize: Int
    /// Who puts `bosTokenId` in front of a plain prompt: "tokenizer" (an app must not), "none", or "unknown".
    public let bosRule: String
    public let bosTokenId: Int?
    public let eosTokenIds: [Int]
}

/// Sizes of the decoder (exporter/native/llm/MANIFEST.md).
public struct Network: Equatable, Sendable {
    public let hidden, inner, layers, heads, kvHeads, headDim, vocab, context: Int
}

/// The program that a phone runs, in one of three formats.
public struct Package: Sendable {
    public enum Format: String, Sendable, CaseIterable {
        /// `model.pte`: read by a session of the core, and by ExecuTorch.
        case pte
        /// A Core ML program, whose weights `Expander` rebuilds.
        case mlprogram
        /// A Core ML neural network with custom layers.
        case customOp = "custom-op"
    }

    public let format: Format
    /// What a runner opens, relative to the bundle.
    public let path: String
    public let files: [String]
    /// "int16", "float32" or "float16".
    public let activations: String
    /// "float16", "float32" or "int8".
    public let kvType: String
    /// Tokens of the longest call.
    public let prefillTokens: Int
    public let kvCacheBytes: Int
    public let matrixCount: Int
    /// Files of the weights that a session of the core reads; none where it cannot read the package.
    public let sessionFiles: [String]
    /// Whether the core alone computes it, so that its logits have the same bits everywhere.
    public var isExact: Bool { !sessionFiles.isEmpty && activations == "int16" }
    /// What only its format has.
    public let details: JSON
}

/// The content of `manifest.json`, as far as an app needs it.
public struct Manifest: Sendable {
    public static let fileName = "manifest.json"
    public static let tokenizerName = "tokenizer.json"
    public static let referenceName = "reference.safetensors"
    /// The version of the manifest that this kit reads.
    public static let schemaVersion = 10

    public let modelName: String
    public let parameters: Int
    public let created: String
    public let scheme: String
    public let interface: Interface
    public let network: Network
    public let packages: [Package]
    /// The texts of the prompts that the reference answers.
    public let prompts: [String]
    public let chat: ChatFormat
    /// What will disappoint, in whole sentences.
    public let warnings: [String]
    public let files: [FileEntry]
    /// Made by `Expander`, beside the files.
    public let expanded: [FileEntry]
    /// The digest of all other content.
    public let sha256: String

    /// Of the bytes of `manifest.json`. Throws BundleError for another schema version, a content that was changed since it
    /// was sealed, and the first member that is missing or of a wrong type.
    public init(data: Data) throws {
        let root: JSON
        do { root = try JSON.parse(data) } catch {
            throw BundleError(.notValid, "manifest.json is not JSON: \(error)", hint: "Copy the model again.")
        }
        guard root.members != nil else { throw BundleError(.notValid, "manifest.json must hold an object", hint: "Copy the model again.") }
        try Manifest.checkSeal(root)
        let top = Field(root)
        let model = top["model"]
        modelName = try model["name"].text()
        parameters = try model["parameters"].count()
        created = try top["created"].text()
        scheme = try top["quantization"]["scheme"].text()
        interface = try Interface(top["interface"])
        network = try Network(top["network"])
        packages = try top["artifacts"].list().map(Package.init)
        prompts = try top["prompts"].list().map { try $0.text() }
        chat = try ChatFormat(top["chat"])
        warnings = try top["warnings"].list().map { try $0.text() }
        files = try top["files"].list().map(FileEntry.init)
        expanded = try top["expanded"].list().map(FileEntry.init)
        sha256 = try top["sha256"].text()
        guard !packages.isEmpty else { throw Manifest.invalid("there is no artifact") }
        let listed = Set(files.map(\.path))
        if let stray = packages.flatMap(\.sessionFiles).first(where: { !listed.contains($0) }) {
            throw Manifest.invalid("weights lie in \(stray), which is not listed")
        }
    }

    /// The package of a format; nil if the bundle has none.
    public func package(_ format: Package.Format) -> Package? { packages.first { $0.format == format } }

    /// Files to fetch for one package: its own, the tokenizer, and with `check` the answers of "Check this model".
    /// Throws BundleError where the bundle has no such package, or does not list what it needs.
    public func files(for format: Package.Format, check: Bool = true) throws -> [FileEntry] {
        guard let package = package(format), format != .pte || package.isExact else {
            let there = packages.map { "\($0.format.rawValue) (\($0.activations))" }.joined(separator: ", ")
            throw BundleError(
                .notSupported, "\(modelName) has no package of the format \(format.rawValue): it has \(there)",
                hint: "Export it again with another --target, and int16 activations.")
        }
        let names = package.files + [Manifest.tokenizerName] + (check ? [Manifest.referenceName] : [])
        let entries = Dictionary(files.map { ($0.path, $0) }, uniquingKeysWith: { first, _ in first })
        let missing = names.filter { entries[$0] == nil }
        guard missing.isEmpty else {
            throw BundleError(
                .notValid, "manifest.json does not list files that \(format.rawValue) needs", problems: missing,
                hint: "Export the model again, with its tokenizer.")
        }
        return names.compactMap { entries[$0] }
    }

    private static func checkSeal(_ root: JSON) throws {
        guard root["schema_version"]?.int == schemaVersion else {
            let version = root["schema_version"]?.int.map(String.init) ?? "none"
            throw BundleError(
                .otherVersion, "manifest.json has schema version \(version), this app reads \(schemaVersion)",
                hint: "Export the model again, or update the app.")
        }
        var digest = SHA256Digest()
        root.canonical(without: "sha256").withUnsafeBytes { digest.update($0) }
        guard root["sha256"]?.string == digest.finish() else {
            throw BundleError(
                .changed, "manifest.json has been changed: its digest is that of another content",
                hint: "Copy the model again, or export it again.")
        }
    }

    static func invalid(_ what: String) -> BundleError {
        BundleError(.notValid, "manifest.json is not valid: \(what)", hint: "Export the model again.")
    }
}

extension FileEntry {
    init(_ field: Field) throws {
        self.init(
            path: try field["path"].path(), byteCount: try field["n_bytes"].count(), sha256: try field["sha256"].text())
    }
}

extension Interface {
    init(_ field: Field) throws {
        self.init(
            context: try field["context"].count(), vocabSize: try field["vocab_size"].count(),
            bosRule: try field["bos_rule"].text(), bosTokenId: try field["bos_token_id"].optional { try $0.count() },
            eosTokenIds: try field["eos_token_ids"].list().map { try $0.count() })
    }
}

extension Network {
    init(_ field: Field) throws {
        func size(_ name: String) throws -> Int { try field[name].count() }
        self.init(
            hidden: try size("hidden"), inner: try size("inner"), layers: try size("layers"), heads: try size("heads"),
            kvHeads: try size("kv_heads"), headDim: try size("head_dim"), vocab: try size("vocab"),
            context: try size("context"))
    }
}

extension Package {
    init(_ field: Field) throws {
        let name = try field["format"].text()
        guard let format = Format(rawValue: name) else { throw Manifest.invalid("format \(name) is unknown") }
        let activations = try field["activations"].text()
        let kvType = try field["kv_type"].text()
        guard ["float16", "float32", "int8"].contains(kvType) else {
            throw Manifest.invalid("kv_type \(kvType) is unknown")
        }
        let places = field["places"], vectors = field["vectors"], vectorNames = try vectors.names()
        let weights = try places.names().map { try places[$0]["file"].path() } + vectorNames.map { try vectors[$0]["file"].path() }
        self.init(
            format: format, path: try field["path"].path(), files: try field["files"].list().map { try $0.path() },
            activations: activations, kvType: kvType, prefillTokens: try field["prefill_tokens"].count(),
            kvCacheBytes: try field["kv_cache_bytes"].count(), matrixCount: try places.names().count,
            sessionFiles: vectorNames.isEmpty ? [] : Array(Set(weights)).sorted(), details: try field["details"].object())
    }
}

extension ChatFormat {
    init(_ field: Field) throws {
        let strings = field["strings"]
        self.init(
            strings: Dictionary(uniqueKeysWithValues: try strings.names().map { ($0, try strings[$0].text()) }),
            trims: Set(try field["trims"].list().map { try $0.text() }), problem: try field["problem"].text())
    }
}

/// A value of a manifest and where it stands, for errors that name it.
struct Field {
    let value: JSON?
    let place: String

    init(_ value: JSON?, at place: String = "") { (self.value, self.place) = (value, place) }

    subscript(name: String) -> Field { Field(value?[name], at: place.isEmpty ? name : "\(place).\(name)") }

    func text() throws -> String { try require(value?.string, "a text") }

    /// A whole number that is not negative.
    func count() throws -> Int { try require(value?.int.flatMap { $0 < 0 ? nil : $0 }, "a whole number") }

    func list() throws -> [Field] {
        try require(value?.array, "a list").enumerated().map { Field($1, at: "\(place)[\($0)]") }
    }

    func names() throws -> [String] { try require(value?.members, "an object").map(\.name) }

    func object() throws -> JSON {
        _ = try names()
        return value!
    }

    /// A path that stays inside the bundle.
    func path() throws -> String {
        let path = try text()
        let parts = path.split(separator: "/", omittingEmptySubsequences: false)
        guard !parts.contains(where: { $0.isEmpty || $0 == "." || $0 == ".." }), !path.contains("\0") else {
            throw Manifest.invalid("\(place) names \(path), which is outside the bundle")
        }
        return path
    }

    func optional<T>(_ read: (Field) throws -> T) throws -> T? {
        if let value, value.isNull { return nil }
        return try read(self)
    }

    private func require<T>(_ found: T?, _ kind: String) throws -> T {
        guard let found else { throw Manifest.invalid("\(place) \(value == nil ? "is missing" : "must be \(kind)")") }
        return found
    }
}
