// What the app uses of SwiftUI: views and values. Declared for type checks where there is no Apple SDK; nothing here runs.
// SwiftUIModifiers.swift has the modifiers.
@_exported import Foundation
@_exported import Observation

public typealias CGFloat = Foundation.CGFloat

@MainActor @preconcurrency
public protocol View {
    associatedtype Body: View
    @ViewBuilder var body: Body { get }
}

extension Never: View { public var body: Never { return fatalError() } }
extension Optional: View where Wrapped: View { public var body: Never { return fatalError() } }

/// Stands for every view whose real type the app does not name.
public struct Opaque: View { public var body: Never { return fatalError() } }

@resultBuilder
public struct ViewBuilder {
    public static func buildBlock() -> EmptyView { fatalError() }
    public static func buildExpression<V: View>(_ view: V) -> V { view }
    public static func buildBlock<each V: View>(_ view: repeat each V) -> Opaque { fatalError() }
    public static func buildIf<V: View>(_ view: V?) -> V? { view }
    public static func buildEither<V: View>(first: V) -> Opaque { fatalError() }
    public static func buildEither<V: View>(second: V) -> Opaque { fatalError() }
    public static func buildLimitedAvailability<V: View>(_ view: V) -> Opaque { fatalError() }
}

public protocol View0: View {}
extension View0 { public var body: Never { return fatalError() } }

public struct LocalizedStringKey: ExpressibleByStringInterpolation, Equatable, Sendable {
    public init(stringLiteral value: String) {}
}

// ---- Values and bindings

@propertyWrapper @dynamicMemberLookup
public struct Binding<Value> {
    public init(get: @escaping () -> Value, set: @escaping (Value) -> Void) {}
    public var wrappedValue: Value { get { fatalError() } nonmutating set {} }
    public var projectedValue: Binding<Value> { self }
    public subscript<S>(dynamicMember path: WritableKeyPath<Value, S>) -> Binding<S> { fatalError() }
}

@propertyWrapper
public struct State<Value> {
    public init(wrappedValue: Value) {}
    public var wrappedValue: Value { get { fatalError() } nonmutating set {} }
    public var projectedValue: Binding<Value> { fatalError() }
}

extension State where Value: ExpressibleByNilLiteral {
    public init() {}
}

@propertyWrapper @dynamicMemberLookup
public struct Bindable<Value: AnyObject & Observable> {
    public init(_ wrappedValue: Value) {}
    public init(wrappedValue: Value) {}
    public var wrappedValue: Value { get { fatalError() } set {} }
    public var projectedValue: Bindable<Value> { self }
    public subscript<S>(dynamicMember path: ReferenceWritableKeyPath<Value, S>) -> Binding<S> { fatalError() }
}

public struct EnvironmentValues {
    public var scenePhase: ScenePhase { fatalError() }
    public var dismiss: DismissAction { fatalError() }
}

@MainActor public struct DismissAction { public func callAsFunction() {} }
public enum ScenePhase: Sendable { case background, inactive, active }

@propertyWrapper
public struct Environment<Value> {
    public init(_ path: KeyPath<EnvironmentValues, Value>) {}
    public var wrappedValue: Value { fatalError() }
}

// ---- Scenes

@MainActor @preconcurrency
public protocol Scene {
    associatedtype Body: Scene
    @SceneBuilder var body: Body { get }
}

extension Never: Scene {}

@resultBuilder
public struct SceneBuilder { public static func buildBlock<S: Scene>(_ scene: S) -> S { scene } }

public struct WindowGroup<Content: View>: Scene {
    public init(@ViewBuilder content: () -> Content) {}
    public var body: Never { return fatalError() }
}

extension Scene {
    public func onChange<V: Equatable>(
        of value: V, initial: Bool = false, _ action: @escaping (V, V) -> Void
    ) -> some Scene { self }
}

@MainActor @preconcurrency
public protocol App {
    associatedtype Body: Scene
    init()
    @SceneBuilder var body: Body { get }
}

extension App { public static func main() {} }

// ---- Text, images and shapes

public struct Text: View0 {
    public enum DateStyle { case relative }
    public init(verbatim: String) {}
    public init(_ key: LocalizedStringKey) {}
    @_disfavoredOverload public init<S: StringProtocol>(_ text: S) {}
    public init(_ date: Date, style: DateStyle) {}
    public func bold() -> Text { self }
    public func italic() -> Text { self }
    public func font(_ font: Font?) -> Text { self }
    public func foregroundStyle(_ color: Color) -> Text { self }
    public static func + (a: Text, b: Text) -> Text { a }
}

public struct Image: View0 { public init(systemName: String) {} }
public struct EmptyView: View0 { public init() {} }
public struct Spacer: View0 { public init() {} }

public struct Label: View0 {
    public init(_ title: LocalizedStringKey, systemImage: String) {}
    public init<T: View, I: View>(@ViewBuilder title: () -> T, @ViewBuilder icon: () -> I) {}
}

public struct Font: Sendable {
    public enum Design: Sendable { case monospaced }
    public enum TextStyle: Sendable { case body, callout, footnote }
    public static let body = Font(), caption = Font(), footnote = Font(), headline = Font(), subheadline = Font()
    public static let title2 = Font()
    public static func system(_ style: TextStyle, design: Design? = nil) -> Font { Font() }
    public func monospacedDigit() -> Font { self }
}

public protocol ShapeStyle: Sendable {}
public protocol Shape {}

public struct Color: View0, ShapeStyle {
    public static let red = Color(), secondary = Color(), clear = Color(), accentColor = Color()
    public func opacity(_ opacity: Double) -> Color { self }
}

extension ShapeStyle where Self == Color {
    public static var red: Color { Color() }
    public static var secondary: Color { Color() }
}

public struct RoundedRectangle: Shape { public init(cornerRadius: CGFloat) {} }

// ---- Layout

public struct Alignment: Sendable { public static let leading = Alignment(), trailing = Alignment() }
public struct HorizontalAlignment: Sendable { public static let leading = HorizontalAlignment() }
public struct VerticalAlignment: Sendable {
    public static let top = VerticalAlignment(), bottom = VerticalAlignment(), center = VerticalAlignment()
}

public struct Axis: Sendable {
    public static let vertical = Axis()
    public struct Set: OptionSet, Sendable {
        public let rawValue: Int
        public init(rawValue: Int) { self.rawValue = rawValue }
        public static let vertical = Set(rawValue: 1), horizontal = Set(rawValue: 2)
    }
}

public struct Edge {
    public struct Set: OptionSet, Sendable {
        public let rawValue: Int
        public init(rawValue: Int) { self.rawValue = rawValue }
        public static let all = Set(rawValue: 15), leading = Set(rawValue: 1), horizontal = Set(rawValue: 3)
    }
}

public struct VStack: View0 {
    public init<V: View>(alignment: HorizontalAlignment = .leading, spacing: CGFloat? = nil, @ViewBuilder content: () -> V) {}
}
public struct LazyVStack: View0 {
    public init<V: View>(alignment: HorizontalAlignment = .leading, spacing: CGFloat? = nil, @ViewBuilder content: () -> V) {}
}
public struct HStack: View0 {
    public init<V: View>(alignment: VerticalAlignment = .center, spacing: CGFloat? = nil, @ViewBuilder content: () -> V) {}
}
public struct Group: View0 { public init<V: View>(@ViewBuilder content: () -> V) {} }
public struct ScrollView: View0 { public init<V: View>(_ axes: Axis.Set = .vertical, @ViewBuilder content: () -> V) {} }
public struct ScrollViewReader: View0 { public init<V: View>(@ViewBuilder content: @escaping (ScrollViewProxy) -> V) {} }
@MainActor public struct ScrollViewProxy { public func scrollTo<ID: Hashable>(_ id: ID) {} }
public struct Form: View0 { public init<V: View>(@ViewBuilder content: () -> V) {} }
public struct List: View0 { public init<V: View>(@ViewBuilder content: () -> V) {} }

public struct ForEach<Data: RandomAccessCollection>: View0 {
    public init<V: View>(_ data: Data, @ViewBuilder content: @escaping (Data.Element) -> V)
    where Data.Element: Identifiable {}
    public init<ID: Hashable, V: View>(
        _ data: Data, id: KeyPath<Data.Element, ID>, @ViewBuilder content: @escaping (Data.Element) -> V
    ) {}
}

public struct Section: View0 {
    public init<V: View>(_ title: LocalizedStringKey, @ViewBuilder content: () -> V) {}
    public init<V: View, F: View>(@ViewBuilder content: () -> V, @ViewBuilder footer: () -> F) {}
    public init<V: View, H: View, F: View>(
        @ViewBuilder content: () -> V, @ViewBuilder header: () -> H, @ViewBuilder footer: () -> F
    ) {}
}

public struct NavigationStack: View0 { public init<V: View>(@ViewBuilder root: () -> V) {} }
public struct NavigationSplitView: View0 {
    public init<S: View, D: View>(@ViewBuilder sidebar: () -> S, @ViewBuilder detail: () -> D) {}
}

public struct ContentUnavailableView: View0 {
    public init(_ title: LocalizedStringKey, systemImage: String, description: Text? = nil) {}
}

public protocol TimelineSchedule {}
public struct PeriodicTimelineSchedule: TimelineSchedule {}
extension TimelineSchedule where Self == PeriodicTimelineSchedule {
    public static func periodic(from start: Date, by interval: TimeInterval) -> PeriodicTimelineSchedule { fatalError() }
}
public struct TimelineView: View0 {
    public struct Context {}
    public init<S: TimelineSchedule, V: View>(_ schedule: S, @ViewBuilder content: @escaping (Context) -> V) {}
}
