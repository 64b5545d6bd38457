// What the app uses of SwiftUI: controls and modifiers. See SwiftUI.swift.
import UIKit
import UniformTypeIdentifiers

// ---- Controls

public struct ButtonRole: Sendable { public static let destructive = ButtonRole(), cancel = ButtonRole() }

public struct Button: View0 {
    public init<V: View>(action: @escaping @MainActor () -> Void, @ViewBuilder label: () -> V) {}
    public init<V: View>(role: ButtonRole?, action: @escaping @MainActor () -> Void, @ViewBuilder label: () -> V) {}
    public init(_ title: LocalizedStringKey, action: @escaping @MainActor () -> Void) {}
    public init(_ title: LocalizedStringKey, role: ButtonRole?, action: @escaping @MainActor () -> Void) {}
}

public struct TextField: View0 {
    public init(_ title: LocalizedStringKey, text: Binding<String>) {}
    public init(_ title: LocalizedStringKey, text: Binding<String>, axis: Axis) {}
}

public struct Picker: View0 {
    public init<S: Hashable, V: View>(_ title: LocalizedStringKey, selection: Binding<S>, @ViewBuilder content: () -> V) {}
}

public struct Slider: View0 {
    public init<V: BinaryFloatingPoint, L: View>(
        value: Binding<V>, in bounds: ClosedRange<V>, step: V.Stride = 1, @ViewBuilder label: () -> L
    ) where V.Stride: BinaryFloatingPoint {}
}

public struct Stepper: View0 {
    public init<V: Strideable>(
        _ title: LocalizedStringKey, value: Binding<V>, in bounds: ClosedRange<V>, step: V.Stride = 1
    ) {}
}

public struct LabeledContent: View0 {
    public init<S: StringProtocol>(_ title: LocalizedStringKey, value: S) {}
}

public struct ProgressView: View0 {
    public init(_ title: LocalizedStringKey) {}
    public init<V: BinaryFloatingPoint>(value: V?, total: V = 1.0) {}
    public init<V: BinaryFloatingPoint>(_ title: LocalizedStringKey, value: V?, total: V = 1.0) {}
}

public struct ShareLink: View0 {
    public init<V: View>(item: String, @ViewBuilder label: () -> V) {}
}

// ---- Toolbars

@MainActor @preconcurrency
public protocol ToolbarContent {}

public struct ToolbarItemPlacement: Sendable {
    public static let primaryAction = Self(), confirmationAction = Self(), cancellationAction = Self()
    public static let topBarTrailing = Self()
}
public struct ToolbarItem: ToolbarContent {
    public init<V: View>(placement: ToolbarItemPlacement, @ViewBuilder content: () -> V) {}
}
public struct ToolbarItemGroup: ToolbarContent {
    public init<V: View>(placement: ToolbarItemPlacement, @ViewBuilder content: () -> V) {}
}

@resultBuilder
public struct ToolbarContentBuilder {
    public static func buildBlock<T: ToolbarContent>(_ content: T) -> T { content }
}

// ---- Modifiers

public struct AccessibilityTraits: OptionSet, Sendable {
    public let rawValue: Int
    public init(rawValue: Int) { self.rawValue = rawValue }
    public static let isSelected = AccessibilityTraits(rawValue: 1)
}
public struct AccessibilityChildBehavior: Sendable { public static let combine = Self() }

public protocol TextFieldStyle {}
public struct RoundedBorderTextFieldStyle: TextFieldStyle {}
extension TextFieldStyle where Self == RoundedBorderTextFieldStyle {
    public static var roundedBorder: RoundedBorderTextFieldStyle { RoundedBorderTextFieldStyle() }
}
public protocol PrimitiveButtonStyle {}
public struct BorderlessButtonStyle: PrimitiveButtonStyle {}
extension PrimitiveButtonStyle where Self == BorderlessButtonStyle {
    public static var borderless: BorderlessButtonStyle { BorderlessButtonStyle() }
}
public struct TextInputAutocapitalization: Sendable { public static var never: Self { Self() } }
public protocol TextSelectability {}
public struct EnabledTextSelectability: TextSelectability {}
extension TextSelectability where Self == EnabledTextSelectability {
    public static var enabled: EnabledTextSelectability { EnabledTextSelectability() }
}

extension View {
    public func navigationTitle(_ title: LocalizedStringKey) -> some View { self }
    public func navigationTitle(_ title: Text) -> some View { self }
    public func toolbar<T: ToolbarContent>(@ToolbarContentBuilder content: () -> T) -> some View { self }
    public func sheet<Item: Identifiable, V: View>(
        item: Binding<Item?>, @ViewBuilder content: @escaping (Item) -> V
    ) -> some View { self }
    public func sheet<V: View>(isPresented: Binding<Bool>, @ViewBuilder content: @escaping () -> V) -> some View { self }
    public func alert<A: View, M: View, T>(
        _ title: LocalizedStringKey, isPresented: Binding<Bool>, presenting: T?,
        @ViewBuilder actions: (T) -> A, @ViewBuilder message: (T) -> M
    ) -> some View { self }
    public func fileImporter(
        isPresented: Binding<Bool>, allowedContentTypes: [UTType],
        onCompletion: @escaping (Result<URL, any Error>) -> Void
    ) -> some View { self }
    public func onChange<V: Equatable>(
        of value: V, initial: Bool = false, _ action: @escaping (V, V) -> Void
    ) -> some View { self }
    public func onChange<V: Equatable>(
        of value: V, initial: Bool = false, _ action: @escaping () -> Void
    ) -> some View { self }
    public func task(@_inheritActorContext _ action: @escaping @Sendable () async -> Void) -> some View { self }
    public func overlay<V: View>(@ViewBuilder content: () -> V) -> some View { self }
    public func background<S: ShapeStyle>(_ style: S) -> some View { self }
    public func clipShape<S: Shape>(_ shape: S) -> some View { self }
    public func frame(height: CGFloat?) -> some View { self }
    public func frame(maxWidth: CGFloat?, alignment: Alignment) -> some View { self }
    public func padding(_ edges: Edge.Set = .all, _ length: CGFloat? = nil) -> some View { self }
    public func padding(_ length: CGFloat) -> some View { self }
    public func font(_ font: Font?) -> some View { self }
    public func bold() -> some View { self }
    public func foregroundStyle<S: ShapeStyle>(_ style: S) -> some View { self }
    public func lineLimit(_ number: Int?) -> some View { self }
    public func lineLimit(_ limits: ClosedRange<Int>) -> some View { self }
    public func id<ID: Hashable>(_ id: ID) -> some View { self }
    public func tag<V: Hashable>(_ tag: V) -> some View { self }
    public func disabled(_ disabled: Bool) -> some View { self }
    public func contextMenu<V: View>(@ViewBuilder menuItems: () -> V) -> some View { self }
    public func swipeActions<V: View>(@ViewBuilder content: () -> V) -> some View { self }
    public func textSelection<S: TextSelectability>(_ selectability: S) -> some View { self }
    public func textFieldStyle<S: TextFieldStyle>(_ style: S) -> some View { self }
    public func buttonStyle<S: PrimitiveButtonStyle>(_ style: S) -> some View { self }
    public func textInputAutocapitalization(_ value: TextInputAutocapitalization?) -> some View { self }
    public func autocorrectionDisabled() -> some View { self }
    public func keyboardType(_ type: UIKeyboardType) -> some View { self }
    public func accessibilityLabel(_ key: LocalizedStringKey) -> some View { self }
    public func accessibilityHint(_ key: LocalizedStringKey) -> some View { self }
    public func accessibilityElement(children: AccessibilityChildBehavior) -> some View { self }
    public func accessibilityAddTraits(_ traits: AccessibilityTraits) -> some View { self }
}

@MainActor @propertyWrapper
public struct UIApplicationDelegateAdaptor<D: NSObject & UIApplicationDelegate> {
    public init(_ type: D.Type = D.self) {}
    public var wrappedValue: D { fatalError() }
}
