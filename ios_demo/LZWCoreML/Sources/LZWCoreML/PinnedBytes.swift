import Foundation

/// A part of an object's bytes, at an address that stays while the object lives: nothing is copied.
public struct PinnedBytes: @unchecked Sendable {
    private let owner: NSData  // immutable
    private let range: Range<Int>

    /// All bytes of `data`, as Core ML or a mapped file holds them.
    public init(_ data: Data) {
        #if canImport(ObjectiveC)
            owner = data as NSData
        #else
            owner = NSData(data: data)  // copies: only where tests run
        #endif
        range = 0..<data.count
    }

    private init(owner: NSData, range: Range<Int>) {
        self.owner = owner
        self.range = range
    }

    public var count: Int { range.count }

    public var bytes: UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(start: owner.bytes + range.lowerBound, count: range.count)
    }

    /// A part of these bytes, or nil where they do not reach so far.
    public func part(_ part: Range<Int>) -> PinnedBytes? {
        guard part.upperBound <= range.count else { return nil }
        let begin = range.lowerBound
        return PinnedBytes(owner: owner, range: begin + part.lowerBound..<begin + part.upperBound)
    }
}

/// Memory of this block alone, on a multiple of 64 bytes, as the core wants its buffers.
final class AlignedBuffer {
    let address: UnsafeMutableRawPointer

    init(bytes: Int) { address = .allocate(byteCount: max(bytes, 64), alignment: 64) }
    deinit { address.deallocate() }
}
