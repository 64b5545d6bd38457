// What the app uses of UniformTypeIdentifiers, declared for type checks where there is no Apple SDK.
public struct UTType: Sendable { public static var folder: UTType { UTType() } }
