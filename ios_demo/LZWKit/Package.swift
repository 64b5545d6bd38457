// swift-tools-version: 6.0
// The parts of an app that runs Tiny-QMoE bundles, over the C++ core of this repository. Foundation only.
import PackageDescription

let package = Package(
    name: "LZWKit",
    platforms: [.iOS(.v17), .macOS(.v14)],
    products: [.library(name: "LZWKit", targets: ["LZWKit"])],
    dependencies: [.package(name: "tinyqmoe", path: "../../exporter/native")],
    targets: [
        .target(name: "LZWKit", dependencies: [.product(name: "TinyQMoECore", package: "tinyqmoe")]),
        .testTarget(name: "LZWKitTests", dependencies: ["LZWKit"]),
    ],
    swiftLanguageModes: [.v6]
)
