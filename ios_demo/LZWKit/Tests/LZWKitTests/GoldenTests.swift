import Foundation
import XCTest

@testable import LZWKit

/// What Python, C++, Kotlin and Swift must agree on: tests/golden.
final class GoldenTests: XCTestCase {
    func testBlobsDecode() throws {
        let rows = try table("decode.tsv")
        XCTAssertGreaterThan(rows.count, 30)
        for row in rows {
            let data = try Data(contentsOf: Paths.golden.appendingPathComponent(row["file"]!))
            let tensor = try CodedTensor(data, verify: true)
            XCTAssertEqual([tensor.rows, tensor.cols], [Int(row["rows"]!)!, Int(row["cols"]!)!])
            let crc = try tensor.levels(0..<tensor.rows).withUnsafeBytes { crc32($0) }
            XCTAssertEqual(hexadecimal(crc, digits: 8), row["levels_crc32"], row["file"]!)
        }
    }

    func testBlobsAreRefused() throws {
        let rows = try table("errors.tsv")
        XCTAssertGreaterThan(rows.count, 60)
        for row in rows {
            let data = try Data(contentsOf: Paths.golden.appendingPathComponent(row["file"]!))
            XCTAssertThrowsError(try CodedTensor(data, verify: true), row["file"]!) { error in
                XCTAssertEqual((error as? CoreError)?.name, row["status"], row["file"]!)
                XCTAssertEqual((error as? CoreError)?.number, Int(row["number"]!), row["file"]!)
            }
            if row["stage"] != "open" { XCTAssertNoThrow(try CodedTensor(data), row["file"]!) }
        }
    }

    func testTokenizers() throws {
        let vectors = try golden("tokenizer/vectors.json")
        let texts = vectors["texts"]!.array!.map { $0.string! }
        for entry in vectors["tokenizers"]!.array! {
            let name = entry["name"]!.string!, file = Paths.golden.appendingPathComponent(entry["file"]!.string!)
            let tokenizer = try Tokenizer(data: Data(contentsOf: file))
            for (i, text) in texts.enumerated() {
                let ids = entry["ids"]!.array![i].ids
                XCTAssertEqual(tokenizer.encode(text), ids, "\(name): \(text.debugDescription)")
                let control = entry["control_ids"]!.array![i].ids
                XCTAssertEqual(tokenizer.encode(text, control: true), control, "\(name): \(text.debugDescription)")
                let decoded = entry["decoded"]!.array![i].string!
                XCTAssertEqual(Array(tokenizer.decode(ids).utf8), Array(decoded.utf8), "\(name): \(text.debugDescription)")
            }
        }
    }

    func testUnknownTokenizersAreRefusedByName() throws {
        for entry in try golden("tokenizer/vectors.json")["refused"]!.array! {
            let whole = try golden(entry["file"]!.string!)
            let changed = replaced(whole, entry["path"]!.array![...], entry["value"]!)
            let error = bundleError { _ = try Tokenizer(data: Data(changed.canonical())) }
            let names = entry["names"]!.string!
            XCTAssertTrue(error?.what.contains(names) ?? false, "\(names): \(error?.what ?? "")")
        }
    }

    private func replaced(_ json: JSON, _ path: ArraySlice<JSON>, _ value: JSON) -> JSON {
        guard let step = path.first else { return value }
        switch json {
        case .object(let members):
            let isThere = members.contains { $0.name == step.string }
            let all = isThere ? members : members + [(step.string!, JSON.null)]
            return .object(all.map { $0.name == step.string ? ($0.name, replaced($0.value, path.dropFirst(), value)) : $0 })
        case .array(let items):
            return .array(items.enumerated().map { $0 == step.int ? replaced($1, path.dropFirst(), value) : $1 })
        default: return json
        }
    }

    func testChatFormats() throws {
        let chats = try golden("chat.json")
        let form = DateFormatter()
        (form.locale, form.dateFormat) = (Locale(identifier: "en_US_POSIX"), "dd MMM yyyy")
        let date = form.date(from: chats["date"]!.string!)!
        for template in chats["templates"]!.array! {
            let strings = template["strings"]!.members!.map { ($0.name, $0.value.string!) }
            let trims = Set(template["trims"]!.array!.map { $0.string! })
            let format = ChatFormat(strings: Dictionary(uniqueKeysWithValues: strings), trims: trims, problem: "")
            for rendering in template["renderings"]!.array! {
                let messages = rendering["messages"]!.array!.map {
                    Message(Message.Role(rawValue: $0["role"]!.string!)!, $0["content"]!.string!)
                }
                let text = try format.render(messages, date: date).map(\.text).joined()
                XCTAssertEqual(text, rendering["text"]!.string!, template["name"]!.string!)
            }
        }
    }

    func testManifests() throws {
        let kinds: [String: BundleError.Kind] = [
            "schema_version": .otherVersion, "changed": .changed, "no_manifest": .notValid, "invalid": .notValid,
        ]
        for row in try table("manifest.tsv") {
            let data = try Data(contentsOf: Paths.golden.appendingPathComponent(row["file"]!))
            switch row["kind"]! {
            case "ok": XCTAssertNoThrow(try Manifest(data: data).files(for: .pte), row["file"]!)
            case "no_package":
                let manifest = try Manifest(data: data)
                XCTAssertEqual(bundleError { _ = try manifest.files(for: .pte) }?.kind, .notSupported)
            default:
                let error = bundleError { _ = try Manifest(data: data) }
                XCTAssertEqual(error?.kind, kinds[row["kind"]!], row["file"]!)
                XCTAssertTrue(error?.what.contains(row["names"]!) ?? false, "\(row["file"]!): \(error?.what ?? "")")
            }
        }
    }

    func testSampler() throws {
        let entries = try golden("sampler.json").array!
        XCTAssertGreaterThan(entries.count, 5)
        for entry in entries {
            let sampling = Sampling(
                temperature: entry["temperature"]!.double!, topK: entry["top_k"]!.int!, topP: entry["top_p"]!.double!,
                seed: UInt64(entry["seed"]!.string!)!)
            var sampler = Sampler(sampling)
            let logits = entry["logits"]!.array!.map { Float($0.double!) }
            let tokens = entry["tokens"]!.ids
            XCTAssertEqual(tokens.map { _ in sampler.choose(logits) }, tokens, "\(sampling)")
        }
    }

    func testGates() throws {
        for row in try table("gates.tsv") {
            let package = Package(
                format: .pte, path: "", files: [], activations: row["activations"]!, kvType: row["kv_type"]!,
                prefillTokens: 0, kvCacheBytes: 0, matrixCount: 0, sessionFiles: [], details: .null)
            func number(_ name: String) -> Double { Double(row[name]!)! }
            let gate = Gate(
                medianKL: number("median_kl"), medianSQNR: number("median_sqnr_db"), worstKL: number("worst_kl"),
                worstSQNR: number("worst_sqnr_db"))
            XCTAssertEqual(try Gate(package), gate, "\(row)")
        }
    }

    func testSHA256() {
        // Of FIPS 180-4, and of every length around a block against CryptoKit or itself in other pieces.
        XCTAssertEqual(digest("abc", pieces: 1), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        XCTAssertEqual(digest("", pieces: 1), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
        let long = String(repeating: "a", count: 1_000_000)
        XCTAssertEqual(digest(long, pieces: 7), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0")
        for count in 50..<140 {
            let text = String(repeating: "x", count: count)
            XCTAssertEqual(digest(text, pieces: 1), digest(text, pieces: 3), "\(count)")
        }
    }

    private func digest(_ text: String, pieces: Int) -> String {
        var digest = PortableSHA256()
        let bytes = Array(text.utf8), step = bytes.count / pieces + 1
        for begin in stride(from: 0, to: bytes.count, by: step) {
            bytes[begin..<min(begin + step, bytes.count)].withUnsafeBytes { digest.update($0) }
        }
        return digest.finish()
    }
}
