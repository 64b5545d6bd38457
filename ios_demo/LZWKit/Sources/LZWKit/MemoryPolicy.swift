import Foundation

/// What happened to the app or the device.
public enum PolicyEvent: Equatable, Sendable {
    public enum MemoryLevel: Sendable { case moderate, low, critical }
    public enum ThermalLevel: Sendable { case nominal, fair, serious, critical }

    /// The system asks for memory. `.critical`: the app is next to be ended.
    case memoryWarning(MemoryLevel)
    /// How hot the device is.
    case thermal(ThermalLevel)
    case background
    case foreground
    case lowDisk
    case generationStarted
    case generationEnded
    /// The model was loaded or unloaded, as asked.
    case loaded
    case unloaded
}

/// What the app is to do, in this order.
public enum PolicyAction: Equatable, Sendable {
    /// `Residency.trim`.
    case trim(bytes: UInt64)
    /// `Residency.setBudget`.
    case setBudget(bytes: UInt64)
    /// Stop the answer, and say these words.
    case stopGeneration(words: String)
    /// Close the session; the conversation stays.
    case unload
    /// Open the session again.
    case reload
    /// Delete the folder of expanded weights, and use none.
    case dropCacheFolder
    /// Wait so many milliseconds between tokens; 0: none.
    case pause(milliseconds: Int)
}

/// What to do on memory warnings, heat, background and a full disk: a state machine without a clock, a thread or a system
/// call. ios_demo/README.md has its table.
public struct MemoryPolicy: Sendable {
    /// Memory for expanded weights when all is well.
    public let budgetBytes: UInt64
    private var budget: UInt64
    private var isLoaded = false
    private var isGenerating = false
    private var isInBackground = false
    /// The policy unloaded the model, and loads it again in the foreground.
    private var owesReload = false
    private var thermal = PolicyEvent.ThermalLevel.nominal

    public init(budgetBytes: UInt64) { (self.budgetBytes, budget) = (budgetBytes, budgetBytes) }

    /// The actions that an event asks for.
    public mutating func on(_ event: PolicyEvent) -> [PolicyAction] {
        switch event {
        case .memoryWarning(let level): return warned(level)
        case .thermal(let level): return heated(level)
        case .background: return left()
        case .foreground: return returned()
        case .lowDisk: return [.dropCacheFolder]
        case .generationStarted: isGenerating = true
        case .generationEnded: isGenerating = false
        case .loaded:
            (isLoaded, owesReload) = (true, isInBackground)
            return isInBackground ? [.unload] : [.setBudget(bytes: budget)]
        case .unloaded: (isLoaded, isGenerating) = (false, false)
        }
        return []
    }

    private mutating func warned(_ level: PolicyEvent.MemoryLevel) -> [PolicyAction] {
        guard level != .moderate else {
            let freed = budget - budget / 2
            budget /= 2
            return freed > 0 ? [.trim(bytes: freed)] : []
        }
        budget = 0
        var actions: [PolicyAction] = [.trim(bytes: .max)]
        guard level == .critical else { return actions }
        if isGenerating {
            actions.insert(.stopGeneration(words: "The answer was stopped: the device is short of memory."), at: 0)
        } else if isLoaded {
            owesReload = true
            actions.append(.unload)
        }
        return actions
    }

    private mutating func heated(_ level: PolicyEvent.ThermalLevel) -> [PolicyAction] {
        guard level != thermal else { return [] }
        let before = thermal
        thermal = level
        switch level {
        case .nominal, .fair: return before == .nominal || before == .fair ? [] : [.pause(milliseconds: 0)]
        case .serious: return [.pause(milliseconds: 50)]
        case .critical:
            let stop = PolicyAction.stopGeneration(words: "The answer was stopped: the device is too hot.")
            return (isGenerating ? [stop] : []) + [.pause(milliseconds: 200)]
        }
    }

    private mutating func left() -> [PolicyAction] {
        guard !isInBackground else { return [] }
        isInBackground = true
        guard isLoaded else { return [] }
        owesReload = true
        let stop = PolicyAction.stopGeneration(words: "The answer was stopped: the app went to the background.")
        return (isGenerating ? [stop] : []) + [.trim(bytes: .max), .unload]
    }

    private mutating func returned() -> [PolicyAction] {
        isInBackground = false
        budget = budgetBytes
        guard owesReload else { return isLoaded ? [.setBudget(bytes: budget)] : [] }
        return [.reload]
    }
}
