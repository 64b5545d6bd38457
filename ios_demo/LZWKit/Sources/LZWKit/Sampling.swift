import Foundation

/// How the next token is chosen.
public struct Sampling: Codable, Equatable, Sendable {
    /// 0 is greedy.
    public var temperature: Double
    /// Keeps that many of the likeliest tokens; 0: all.
    public var topK: Int
    /// Keeps the likeliest tokens of that probability, above 0 and at most 1.
    public var topP: Double
    /// Chooses the random numbers.
    public var seed: UInt64

    public init(temperature: Double = 0, topK: Int = 0, topP: Double = 1, seed: UInt64 = 0) {
        (self.temperature, self.topK, self.topP, self.seed) = (temperature, topK, topP, seed)
    }

    public static let greedy = Sampling()
    public var isGreedy: Bool { temperature == 0 }
}
