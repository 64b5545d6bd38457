// swift-tools-version: 6.0
// Core ML's two packages as engines of LZWKit: custom layers over the C++ core, and the ML Program.
// What touches Core ML is compiled where there is Core ML; the arithmetic under it is compiled and tested anywhere.
import PackageDescription

let package = Package(
    name: "LZWCoreML",
    platforms: [.iOS(.v17), .macOS(.v14)],
    products: [.library(name: "LZWCoreML", targets: ["LZWCoreML"])],
    dependencies: [
        .package(path: "../LZWKit"),
        .package(name: "tinyqmoe", path: "../../exporter/native"),
    ],
    targets: [
        .target(
            name: "LZWCoreML",
            dependencies: ["LZWKit", .product(name: "TinyQMoECore", package: "tinyqmoe")]
        ),
        .testTarget(
            name: "LZWCoreMLTests",
            dependencies: ["LZWCoreML", .product(name: "TinyQMoECore", package: "tinyqmoe")]
        ),
    ],
    swiftLanguageModes: [.v6]
)
