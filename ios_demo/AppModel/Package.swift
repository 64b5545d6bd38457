// swift-tools-version: 6.0
// What the app does, without its screens: view models that are compiled and tested anywhere.
import PackageDescription

let package = Package(
    name: "AppModel",
    platforms: [.iOS(.v17), .macOS(.v14)],
    products: [.library(name: "AppModel", targets: ["AppModel"])],
    dependencies: [.package(path: "../LZWKit")],
    targets: [
        .target(name: "AppModel", dependencies: ["LZWKit"]),
        .testTarget(name: "AppModelTests", dependencies: ["AppModel", "LZWKit"]),
    ],
    swiftLanguageModes: [.v6]
)
