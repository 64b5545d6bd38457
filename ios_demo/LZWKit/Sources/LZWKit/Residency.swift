import Foundation
import TinyQMoECore

/// Where the weights of products lie, for all sessions of this process. Every choice gives the same bits. All calls may
/// be made from any thread at any time, also while a session generates.
public enum Residency {
    /// Anonymous memory that expanded weights may take. 0 (at the start): none.
    public static func setBudget(bytes: UInt64) { tinyqmoe_set_budget(bytes) }

    /// For memory warnings: frees expanded weights of at least so many bytes, or all, and lowers the budget to what is
    /// kept. The bytes that were freed.
    @discardableResult
    public static func trim(bytes: UInt64 = .max) -> UInt64 {
        var freed: UInt64 = 0
        tinyqmoe_trim(bytes, &freed)
        return freed
    }

    /// Expanded weights that the budget does not hold are kept as files in this folder, which must exist; nil: no files.
    /// Throws CoreError.
    public static func setCacheFolder(_ folder: URL?) throws { try check(tinyqmoe_set_cache_dir(folder?.path)) }

    /// Memory that clean pages of weights may take; .max (at the start): the system decides.
    public static func setCleanBudget(bytes: UInt64) { tinyqmoe_set_clean_budget(bytes) }

    public struct Statistics: Equatable, Sendable {
        public let budgetBytes, dirtyBytes, fileBytes: UInt64
        public let tensors, expanded, streamed: UInt64
    }

    public static var statistics: Statistics {
        var native = tinyqmoe_residency_stats()
        native.struct_bytes = UInt64(MemoryLayout<tinyqmoe_residency_stats>.size)
        _ = tinyqmoe_stats(&native)
        return Statistics(
            budgetBytes: native.budget_bytes, dirtyBytes: native.dirty_bytes, fileBytes: native.file_bytes,
            tensors: native.tensors_known, expanded: native.tensors_expanded, streamed: native.tensors_streamed)
    }
}
