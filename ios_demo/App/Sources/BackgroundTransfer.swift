import AppModel
import Foundation
import LZWKit

/// Downloads that go on while the app is away: one file, or the rest of one, for each task of a background session.
final class BackgroundTransfer: NSObject, FileTransfer, URLSessionDownloadDelegate, @unchecked Sendable {
    private struct Waiting {
        let progress: @Sendable (Int) -> Void
        let continuation: CheckedContinuation<Void, any Error>
    }

    private let root: URL
    private let lock = NSLock()
    private var waiting: [Int: Waiting] = [:]  // by task
    private var failures: [Int: any Error] = [:]
    private var idle: [@Sendable () -> Void] = []
    private lazy var session = URLSession(configuration: Self.configuration, delegate: self, delegateQueue: nil)

    /// `root`: a folder above all partial files. The system may move it between two starts of the app.
    init(root: URL) { self.root = root }

    private static var configuration: URLSessionConfiguration {
        let configuration = URLSessionConfiguration.background(withIdentifier: "com.tinyqmoe.demo.download")
        configuration.sessionSendsLaunchEvents = true
        configuration.isDiscretionary = false
        return configuration
    }

    func fetch(
        _ url: URL, from offset: Int, appendingTo partial: URL, progress: @escaping @Sendable (Int) -> Void
    ) async throws {
        let piece = DownloadPiece(of: partial, under: root, offset: offset)
        let task = await session.allTasks.first { $0.taskDescription == piece.description } ?? begin(url, piece)
        try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                lock.withLock {
                    waiting[task.taskIdentifier] = Waiting(progress: progress, continuation: continuation)
                }
                task.resume()
            }
        } onCancel: {
            // What came is kept as resume data, in didCompleteWithError.
            (task as? URLSessionDownloadTask)?.cancel(byProducingResumeData: { _ in })
        }
        try Task.checkCancellation()
    }

    /// Runs the system's handler when all that came while the app was away is in its place.
    func whenIdle(_ handler: @escaping () -> Void) {
        nonisolated(unsafe) let handler = handler
        lock.withLock { idle.append { DispatchQueue.main.async { handler() } } }
        _ = session
    }

    private func begin(_ url: URL, _ piece: DownloadPiece) -> URLSessionTask {
        let task: URLSessionDownloadTask
        if let kept = piece.takeResumeData() {
            task = session.downloadTask(withResumeData: kept)
        } else {
            var request = URLRequest(url: url)
            if piece.offset > 0 { request.setValue("bytes=\(piece.offset)-", forHTTPHeaderField: "Range") }
            task = session.downloadTask(with: request)
        }
        task.taskDescription = piece.description
        return task
    }

    func urlSession(
        _ session: URLSession, downloadTask: URLSessionDownloadTask, didWriteData bytesWritten: Int64,
        totalBytesWritten: Int64, totalBytesExpectedToWrite: Int64
    ) {
        let offset = DownloadPiece(downloadTask.taskDescription, under: root)?.offset ?? 0
        lock.withLock { waiting[downloadTask.taskIdentifier] }?.progress(offset + Int(totalBytesWritten))
    }

    /// Puts the piece into its place, also when nobody waits for it after a start by the system.
    func urlSession(_ session: URLSession, downloadTask: URLSessionDownloadTask, didFinishDownloadingTo location: URL) {
        guard let piece = DownloadPiece(downloadTask.taskDescription, under: root) else { return }
        let status = (downloadTask.response as? HTTPURLResponse)?.statusCode ?? 0
        do { try piece.add(location, status: status) } catch {
            lock.withLock { failures[downloadTask.taskIdentifier] = error }
        }
    }

    func urlSession(_ session: URLSession, task: URLSessionTask, didCompleteWithError error: (any Error)?) {
        let (one, failure) = lock.withLock {
            (waiting.removeValue(forKey: task.taskIdentifier), failures.removeValue(forKey: task.taskIdentifier))
        }
        if let data = (error as? URLError)?.downloadTaskResumeData {
            DownloadPiece(task.taskDescription, under: root)?.keep(resumeData: data)
        }
        guard let problem = failure ?? error.map(Self.words) else { return one?.continuation.resume() ?? () }
        one?.continuation.resume(throwing: problem)
    }

    func urlSessionDidFinishEvents(forBackgroundURLSession session: URLSession) {
        let handlers = lock.withLock {
            defer { idle = [] }
            return idle
        }
        for handler in handlers { handler() }
    }

    private static func words(_ error: any Error) -> any Error {
        if (error as? URLError)?.code == .cancelled { return CancellationError() }
        return BundleError(
            .network, "the download broke: \(error.localizedDescription)",
            hint: "Go on when the network is there: what came is kept.")
    }
}
