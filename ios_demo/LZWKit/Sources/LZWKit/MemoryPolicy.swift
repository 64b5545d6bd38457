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
    /// Stop the answer, and say why.
    case stopGeneration(StopReason)
    /// Close the session; the conversation stays.
    case unload
    /// Open the session again.
    case reload
    /// Delete the folder of expanded weights, and use none.
    case dropCacheFolder
    /// Wait so many milliseconds between tokens; 0: none.
    case pause(milliseconds: Int)
}

/// Why an answer was stopped.
public enum StopReason: String, Sendable {
    case memory, heat, background

    public var words: String {
        switch self {
        case .memory: "The answer was stopped: the device is short of memory."
        case .heat: "The answer was stopped: the device is too hot."
        case .background: "The answer was stopped: the app went to the background."
        }
    }
}

/// What to do on memory warnings, heat, background and a full disk: a state machine without a clock, a thread or a system
/// call. docs/apps.md has its table, and tests/golden/policy.tsv what it does event by event, in Kotlin too.
public struct MemoryPolicy: Sendable {
    /// Memory for expanded weights when all is well.
    public let budgetBytes: UInt64
    private var budget: UInt64
    private var isLoaded = false
    private var isGenerating = false
    private var isInBackground = false
    /// Memory was short in the background: a model that was still loading goes too.
    private var keepsNone = false
    /// The policy unloaded the model, and loads it again in the foreground.
    private var owesReload = false
    private var thermal = PolicyEvent.ThermalLevel.nominal

    public init(budgetBytes: UInt64) { (self.budgetBytes, budget) = (budgetBytes, budgetBytes) }

    /// The actions that an event asks for.
    public mutating func on(_ event: PolicyEvent) -> [PolicyAction] {
        switch event {
        case .memoryWarning(let level): return warned(level)
        case .thermal(let level): return heated(level)
        case .foreground: return returned()
        case .lowDisk: return [.dropCacheFolder]
        case .loaded: return arrived()
        case .unloaded: (isLoaded, isGenerating) = (false, false)
        case .background: isInBackground = true
        case .generationStarted: isGenerating = true
        case .generationEnded: isGenerating = false
        }
        return []
    }

    private mutating func warned(_ level: PolicyEvent.MemoryLevel) -> [PolicyAction] {
        guard level != .moderate else { return halved() }
        budget = 0
        keepsNone = isInBackground
        var actions = [PolicyAction.trim(bytes: .max)]
        if isInBackground {
            actions += stopped(.background)
            if isLoaded { actions += unloaded() }
        } else if level == .critical {
            actions += stopped(.memory)
        }
        return actions
    }

    private mutating func halved() -> [PolicyAction] {
        let freed = budget - budget / 2
        budget -= freed
        return freed > 0 ? [.trim(bytes: freed)] : []
    }

    private mutating func heated(_ level: PolicyEvent.ThermalLevel) -> [PolicyAction] {
        let before = thermal
        thermal = level
        guard level.pauseMilliseconds != before.pauseMilliseconds else { return [] }
        let stops = level == .critical ? stopped(.heat) : []
        return stops + [.pause(milliseconds: level.pauseMilliseconds)]
    }

    private mutating func arrived() -> [PolicyAction] {
        isLoaded = true
        return keepsNone ? unloaded() : [.setBudget(bytes: budget)]
    }

    /// What a warning took comes back with the app; a model that is loaded again gets the budget then.
    private mutating func returned() -> [PolicyAction] {
        let reloads = owesReload
        let grows = isLoaded && budget != budgetBytes
        (isInBackground, keepsNone, owesReload) = (false, false, false)
        budget = budgetBytes
        if reloads { return [.reload] }
        return grows ? [.setBudget(bytes: budget)] : []
    }

    private mutating func stopped(_ reason: StopReason) -> [PolicyAction] {
        guard isGenerating else { return [] }
        isGenerating = false
        return [.stopGeneration(reason)]
    }

    private mutating func unloaded() -> [PolicyAction] {
        (isLoaded, owesReload) = (false, true)
        return [.unload]
    }
}

extension PolicyEvent.ThermalLevel {
    fileprivate var pauseMilliseconds: Int {
        switch self {
        case .nominal, .fair: 0
        case .serious: 100
        case .critical: 500
        }
    }
}
