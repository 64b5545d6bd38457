import Foundation

/// The checks of an engine's answers; `progress` is told the tokens that were run.
struct Judge {
    let engine: any Engine
    let gate: Gate
    let progress: (Int) -> Void
    /// Digests of the exact logits, one after the other, each of one answer.
    private(set) var exactDigests: [String] = []
    private var done = 0

    init(engine: any Engine, gate: Gate, progress: @escaping (Int) -> Void) {
        (self.engine, self.gate, self.progress) = (engine, gate, progress)
    }

    mutating func judge(_ answer: Answer) throws -> [Check] {
        if answer.fillsContext { return try fullContext(answer) }
        var checks: [Check] = []
        for (how, chunks) in answer.feedings {
            var digest = SHA256Digest(), rows: [Difference] = []
            for step in answer.tokens.indices {
                let logits = step == 0 ? try feed(answer.prompt, chunks) : try forward([answer.tokens[step - 1]])
                logits.withUnsafeBytes { digest.update($0) }
                rows.append(Difference(answer.logits(step), logits, gate))
            }
            advance(answer.prompt.count + answer.tokens.count - 1)
            let what = "\(answer.prompt.count) + \(rows.count - 1) tokens, \(how)"
            let sha256 = digest.finish()
            if answer.sha256 != nil, chunks.count == 1 { exactDigests.append(sha256) }
            checks += [logits(what, rows)] + bits(what, answer, sha256, rows.count)
        }
        return checks + [try greedy(answer)]
    }

    private func logits(_ what: String, _ rows: [Difference]) -> Check {
        let kl = rows.map(\.kl).sorted(), sqnr = rows.map(\.sqnr).sorted()
        // Of two middles, the worse counts.
        let klMedian = kl[rows.count / 2], sqnrMedian = sqnr[(rows.count - 1) / 2]
        let passed =
            klMedian <= gate.medianKL && kl.last! <= gate.worstKL && sqnrMedian >= gate.medianSQNR
            && sqnr[0] >= gate.worstSQNR && rows.allSatisfy(\.same)
        return Check(
            verdict: .logits, what: what, passed: passed, positions: rows.count, klMedian: klMedian, klWorst: kl.last!,
            sqnrMedian: sqnrMedian, sqnrWorst: sqnr[0])
    }

    private func bits(_ what: String, _ answer: Answer, _ sha256: String, _ positions: Int) -> [Check] {
        guard let expected = answer.sha256 else { return [] }
        let same = sha256 == expected
        let detail = same ? "" : "the logits have other bits than where the bundle was made"
        return [Check(verdict: .bits, what: what, passed: same, positions: positions, detail: detail)]
    }

    /// The tokens that the engine generates on its own: it may leave the reference only where that is undecided.
    private mutating func greedy(_ answer: Answer) throws -> Check {
        var passed = true, detail = ""
        var logits = try feed(answer.prompt, [answer.prompt.count])
        for (step, want) in answer.tokens.enumerated() {
            let got = logits.indices.reduce(0) { logits[$1] > logits[$0] ? $1 : $0 }
            if got != Int(want) {
                let reference = answer.logits(step)
                let margin = Double(reference[Int(want)] - reference[got])
                passed = margin <= gate.nearTie(reference)
                let kind = passed ? "a near tie" : "not a tie"
                detail = "token \(step) is \(got), not \(want), margin \(String(format: "%.2g", margin)): \(kind)"
                break
            }
            if step + 1 < answer.tokens.count { logits = try forward([want]) }
        }
        advance(answer.prompt.count + answer.tokens.count - 1)
        return Check(
            verdict: .greedy, what: "\(answer.prompt.count) tokens, then its own", passed: passed,
            positions: answer.tokens.count, detail: detail)
    }

    /// A context that is full: its last logits, and that one more token is refused. The last slots are filled one by one.
    private mutating func fullContext(_ answer: Answer) throws -> [Check] {
        let count = answer.prompt.count, steps = min(4, count - 1)
        let got = try feed(answer.prompt, [count - steps] + Array(repeating: 1, count: steps))
        advance(count)
        var digest = SHA256Digest()
        got.withUnsafeBytes { digest.update($0) }
        let what = "\(count) tokens: the whole context", sha256 = digest.finish()
        if answer.sha256 != nil { exactDigests.append(sha256) }
        let rows = [logits(what, [Difference(answer.logits(0), got, gate)])] + bits(what, answer, sha256, 1)
        let isRefused = (try? engine.feed([0], logits: false)) == nil
        return rows + [Check(verdict: .context, what: "token \(count + 1) is refused", passed: isRefused, positions: 1)]
    }

    /// Logits of the last position of a prompt that is fed in chunks.
    private func feed(_ tokens: [Int32], _ chunks: [Int]) throws -> [Float] {
        try engine.trim(to: 0)
        var begin = 0, logits: [Float] = []
        for count in chunks {
            logits = try forward(Array(tokens[begin..<begin + count]))
            begin += count
        }
        return logits
    }

    private func forward(_ tokens: [Int32]) throws -> [Float] {
        try Task.checkCancellation()
        return try engine.feed(tokens, logits: true)
    }

    private mutating func advance(_ tokens: Int) {
        done += tokens
        progress(done)
    }
}
