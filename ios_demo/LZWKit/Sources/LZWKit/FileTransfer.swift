import Foundation

#if canImport(FoundationNetworking)
    import FoundationNetworking
#endif

/// Brings one file: an app may put a background session in place of the kit's own.
public protocol FileTransfer: Sendable {
    /// Appends what follows `offset` in the file at `url` to `partial`, which has `offset` bytes. Where the source cannot
    /// begin elsewhere, `partial` begins anew. `progress` is told the bytes that `partial` has. What came stays when it
    /// throws BundleError, or CancellationError when its task is cancelled.
    func fetch(
        _ url: URL, from offset: Int, appendingTo partial: URL, progress: @escaping @Sendable (Int) -> Void
    ) async throws
}

/// Of a folder of this device.
public struct FolderTransfer: FileTransfer {
    public init() {}

    public func fetch(
        _ url: URL, from offset: Int, appendingTo partial: URL, progress: @escaping @Sendable (Int) -> Void
    ) async throws {
        guard let input = try? FileHandle(forReadingFrom: url) else {
            throw BundleError(
                .missing, "\(url.lastPathComponent) is not in the folder", hint: "Choose the whole folder of the model.")
        }
        defer { try? input.close() }
        let output = try FileHandle(forWritingTo: partial)
        defer { try? output.close() }
        try input.seek(toOffset: UInt64(offset))
        try output.seekToEnd()
        var done = offset
        while let piece = try input.read(upToCount: 1 << 20), !piece.isEmpty {
            try Task.checkCancellation()
            try output.write(contentsOf: piece)
            done += piece.count
            progress(done)
        }
    }
}

/// Of a web address, with HTTP's Range.
public struct WebTransfer: FileTransfer {
    public init() {}

    public func fetch(
        _ url: URL, from offset: Int, appendingTo partial: URL, progress: @escaping @Sendable (Int) -> Void
    ) async throws {
        var request = URLRequest(url: url)
        request.cachePolicy = .reloadIgnoringLocalCacheData
        if offset > 0 { request.setValue("bytes=\(offset)-", forHTTPHeaderField: "Range") }
        let writer = DownloadWriter(offset: offset, output: try FileHandle(forWritingTo: partial), progress: progress)
        let session = URLSession(configuration: .ephemeral, delegate: writer, delegateQueue: nil)
        defer { session.finishTasksAndInvalidate() }
        let task = session.dataTask(with: request)
        try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { writer.start(task, $0) }
        } onCancel: {
            task.cancel()
        }
    }
}

/// Writes what comes to a file. Its session calls it on one serial queue.
private final class DownloadWriter: NSObject, URLSessionDataDelegate, @unchecked Sendable {
    private var offset: Int
    private let output: FileHandle
    private let progress: @Sendable (Int) -> Void
    private var continuation: CheckedContinuation<Void, Error>?
    private var failure: Error?

    init(offset: Int, output: FileHandle, progress: @escaping @Sendable (Int) -> Void) {
        (self.offset, self.output, self.progress) = (offset, output, progress)
    }

    func start(_ task: URLSessionDataTask, _ continuation: CheckedContinuation<Void, Error>) {
        self.continuation = continuation
        task.resume()
    }

    func urlSession(
        _ session: URLSession, dataTask: URLSessionDataTask, didReceive response: URLResponse,
        completionHandler: @escaping @Sendable (URLSession.ResponseDisposition) -> Void
    ) {
        let status = (response as? HTTPURLResponse)?.statusCode ?? 0
        do {
            guard status == 200 || (status == 206 && offset > 0) else { throw Self.refused(response.url, status) }
            if status == 200 { offset = 0 }  // it sends the whole file
            try output.truncate(atOffset: UInt64(offset))
            completionHandler(.allow)
        } catch {
            failure = error
            completionHandler(.cancel)
        }
    }

    func urlSession(_ session: URLSession, dataTask: URLSessionDataTask, didReceive data: Data) {
        guard failure == nil else { return }
        do {
            try output.write(contentsOf: data)
            offset += data.count
            progress(offset)
        } catch {
            failure = error
            dataTask.cancel()
        }
    }

    func urlSession(_ session: URLSession, task: URLSessionTask, didCompleteWithError error: Error?) {
        try? output.close()
        if let failure {
            continuation?.resume(throwing: failure)
        } else if let error {
            let isCancelled = (error as? URLError)?.code == .cancelled
            continuation?.resume(throwing: isCancelled ? CancellationError() : Self.broken(task, error))
        } else {
            continuation?.resume()
        }
        continuation = nil
    }

    private static func refused(_ url: URL?, _ status: Int) -> BundleError {
        BundleError(
            .network, "\(url?.absoluteString ?? "the server") answers with HTTP \(status)",
            hint: "Look at the address: it is that of the folder with manifest.json.")
    }

    private static func broken(_ task: URLSessionTask, _ error: Error) -> BundleError {
        let name = task.originalRequest?.url?.lastPathComponent ?? "the file"
        return BundleError(
            .network, "\(name) did not come whole: \(error.localizedDescription)",
            hint: "Go on when the network is there: what came is kept.")
    }
}
