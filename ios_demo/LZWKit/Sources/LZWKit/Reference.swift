import Foundation

/// One prompt of the reference, with its answer in the arithmetic of a package.
struct Answer {
    let prompt: [Int32]
    /// Greedy.
    let tokens: [Int32]
    let fillsContext: Bool
    /// Of the exact logits, where they are the same everywhere.
    let sha256: String?
    /// Of the logits at all tokens, float [tokens, vocab].
    let values: Data
    let vocab: Int

    /// At one of the tokens, float [vocab].
    func logits(_ step: Int) -> [Float] {
        [Float](unsafeUninitializedCapacity: vocab) { buffer, count in
            let begin = values.startIndex + 4 * vocab * step
            count = values.copyBytes(to: buffer, from: begin..<begin + 4 * vocab) / 4
        }
    }

    /// Ways to feed the prompt: names, and tokens of each call.
    var feedings: [(how: String, chunks: [Int])] {
        let count = prompt.count
        var ways = [("prefill", [count])]
        if count >= 3 { ways.append(("split prefill", [count / 3, count - count / 3 - 1, 1])) }
        if count >= 2 { ways.append(("step by step", Array(repeating: 1, count: count))) }
        return ways
    }

    /// Tokens that its checks run.
    var workTokens: Int {
        fillsContext ? prompt.count : (feedings.count + 1) * (prompt.count + tokens.count - 1)
    }
}

/// `reference.safetensors`: what a package must answer.
struct Reference {
    let answers: [Answer]

    /// Of one package. Throws BundleError if it is not whole.
    init(_ bundle: ModelBundle, _ package: Package) throws {
        let file = try Safetensors(bundle.file(Manifest.referenceName))
        let isHalf = package.activations == "float16"
        let arithmetic = isHalf ? "float32-float32" : "\(package.activations)-\(package.kvType)"
        let interface = bundle.manifest.interface
        let count = file.names.filter { $0.hasPrefix("prompt.") }.count
        answers = try (0..<count).map { i in
            let prompt = try file.integers("prompt.\(i)")
            let fillsContext = prompt.count == interface.context
            let tokens = try file.integers("\(arithmetic).\(i).tokens")
            let logits = try file.values("\(arithmetic).\(i).logits", "F32", [tokens.count, interface.vocabSize])
            let sha256 = try package.isExact ? file.values("exact.\(i).sha256", "U8", [32]) : nil
            guard !prompt.isEmpty, !tokens.isEmpty else { throw Safetensors.damaged("answer \(i) is empty") }
            return Answer(
                prompt: prompt, tokens: tokens, fillsContext: fillsContext,
                sha256: sha256?.map { hexadecimal(UInt32($0), digits: 2) }.joined(), values: logits,
                vocab: interface.vocabSize)
        }
        guard answers.contains(where: \.fillsContext), answers.contains(where: { !$0.fillsContext }) else {
            throw Safetensors.damaged("it has no answers, or no prompt that fills the context")
        }
    }
}

