import TinyQMoECore
import Dispatch
import Foundation

/// A matrix in its coded form, opened by the core, with its scales: W [rows, cols].
///
/// Products go through the residency of the core: budgets, memory warnings and the cache folder that
/// the app sets hold for these matrices as for those of a session. Calls may come from any thread.
public final class CodedMatrix: @unchecked Sendable {
    public let name: String
    public let rows: Int
    public let cols: Int
    public let groupSize: Int
    public let scaleType: LayerParameters.ScaleType
    private let tensor: OpaquePointer
    private let blob: PinnedBytes  // the tensor borrows these bytes
    private let scales: PinnedBytes

    /// Opens the blob of a layer and checks it whole, by its checksums: nobody knows what a compiler did to it.
    /// Throws `LayerError`.
    public init(_ parameters: LayerParameters, blob: PinnedBytes, scales: PinnedBytes) throws {
        let (name, groupSize) = (parameters.name, parameters.groupSize)
        var opened: OpaquePointer?
        let status = tinyqmoe_open(
            blob.bytes.baseAddress, UInt64(blob.count), UInt32(TINYQMOE_VERIFY_PAYLOAD), &opened)
        try check(status, layer: name, doing: "opening its weights; import the model again")
        guard let opened else { throw LayerError(name, "the core gave no tensor") }
        tensor = opened
        var info = tinyqmoe_info()
        tinyqmoe_get_info(opened, &info)
        (rows, cols) = (Int(info.rows), Int(info.cols))
        (self.name, self.blob, self.groupSize, scaleType) = (name, blob, groupSize, parameters.scaleType)
        self.scales = Self.aligned(scales, to: scaleType.bytes)
        let expected = scaleType.bytes * rows * ((cols + groupSize - 1) / groupSize)
        guard scales.count == expected else {
            throw LayerError(name, "its scales have \(scales.count) bytes, expected \(expected)")
        }
    }

    deinit { tinyqmoe_close(tensor) }

    /// y = x W^T. x: [tokens, cols], y: [tokens, rows]; `int16` quantizes x as `tinyqmoe_linear_x16` does.
    public func multiply(
        _ x: UnsafePointer<Float>, tokens: Int, int16: Bool, into y: UnsafeMutablePointer<Float>
    ) throws {
        let activations = try Activations(x, tokens: tokens, cols: cols, int16: int16, layer: name)
        var form: OpaquePointer?
        try check(tinyqmoe_acquire(tensor, &form), layer: name, doing: "asking for its weights")
        defer { tinyqmoe_release(form) }
        var (begin, end): (UInt32, UInt32) = (0, 0)
        while tinyqmoe_form_next_rows(form, &begin, &end) {
            var args = tinyqmoe_linear_args()
            args.tensor = tinyqmoe_form_tensor(form)
            args.scales = scales.bytes.baseAddress
            args.scale_type = coreScaleType
            args.group_size = UInt32(groupSize)
            args.n_tokens = UInt32(tokens)
            args.y = y
            try multiplyRows(begin..<end, args, activations)
        }
    }

    /// Rows of the matrix, out: [ids.count, cols].
    public func lookUp(_ ids: [Int64], into out: UnsafeMutablePointer<Float>) throws {
        try ids.withUnsafeBufferPointer { ids in
            var args = tinyqmoe_embedding_args()
            args.tensor = tensor
            args.scales = scales.bytes.baseAddress
            args.scale_type = coreScaleType
            args.group_size = UInt32(groupSize)
            args.ids = ids.baseAddress
            args.n_ids = UInt64(ids.count)
            args.out = out
            try check(tinyqmoe_embedding(&args), layer: name, doing: "looking up \(ids.count) tokens")
        }
    }

    /// Shares the rows among the processor's cores.
    private func multiplyRows(
        _ rows: Range<UInt32>, _ args: tinyqmoe_linear_args, _ activations: Activations
    ) throws {
        let pieces = RowPieces(rows, threads: ProcessInfo.processInfo.activeProcessorCount)
        let scratchBytes = tinyqmoe_linear_scratch_bytes(args.tensor, args.n_tokens)
        let failure = FirstFailure()
        nonisolated(unsafe) let common = args
        DispatchQueue.concurrentPerform(iterations: pieces.count) { i in
            let scratch = AlignedBuffer(bytes: Int(scratchBytes))
            var args = common
            (args.row_begin, args.row_end) = (pieces[i].lowerBound, pieces[i].upperBound)
            (args.scratch, args.scratch_bytes) = (scratch.address, scratchBytes)
            failure.note(activations.multiply(&args))
        }
        try check(failure.status, layer: name, doing: "multiplying")
    }

    private var coreScaleType: tinyqmoe_scale_type {
        scaleType == .float32 ? TINYQMOE_SCALES_FLOAT32 : TINYQMOE_SCALES_UE6M10
    }

    /// The same bytes where scales of so many bytes may lie: inside a file they need not be on a multiple of it.
    private static func aligned(_ scales: PinnedBytes, to bytes: Int) -> PinnedBytes {
        let isAligned = UInt(bitPattern: scales.bytes.baseAddress) % UInt(bytes) == 0
        return isAligned ? scales : PinnedBytes(Data(scales.bytes))
    }
}

/// The activations of a product, quantized once for all rows.
private struct Activations: @unchecked Sendable {
    private let x: UnsafePointer<Float>
    private let quantized: AlignedBuffer?
    private let xScales: AlignedBuffer?

    init(_ x: UnsafePointer<Float>, tokens: Int, cols: Int, int16: Bool, layer: String) throws {
        self.x = x
        guard int16 else {
            (quantized, xScales) = (nil, nil)
            return
        }
        let levels = AlignedBuffer(bytes: tokens * Int(tinyqmoe_quantized_bytes(UInt32(cols))))
        let steps = AlignedBuffer(bytes: 4 * tokens)
        let status = tinyqmoe_quantize_x16(
            x, UInt32(tokens), UInt32(cols), TINYQMOE_ISA_AUTO, levels.address,
            steps.address.assumingMemoryBound(to: Float.self))
        try check(status, layer: layer, doing: "quantizing activations")
        (quantized, xScales) = (levels, steps)
    }

    func multiply(_ args: inout tinyqmoe_linear_args) -> tinyqmoe_status {
        guard let quantized, let xScales else { return tinyqmoe_linear_f32(&args, x) }
        return tinyqmoe_linear_x16(&args, quantized.address, xScales.address.assumingMemoryBound(to: Float.self))
    }
}

/// The first failure among the parts of a product.
private final class FirstFailure: @unchecked Sendable {
    private let lock = NSLock()
    private var first = TINYQMOE_OK

    var status: tinyqmoe_status { lock.withLock { first } }

    func note(_ status: tinyqmoe_status) {
        lock.withLock { if first == TINYQMOE_OK { first = status } }
    }
}
