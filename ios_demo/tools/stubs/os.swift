// What the app uses of os, declared for type checks where there is no Apple SDK.
public func os_proc_available_memory() -> Int { fatalError() }
