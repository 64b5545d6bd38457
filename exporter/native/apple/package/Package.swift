// swift-tools-version: 5.9
// The codec core and sessions, compiled by make-xcframework.sh: the same name and product as the package of sources.
import PackageDescription

let package = Package(
    name: "tinyqmoe",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "TinyQMoECore", targets: ["TinyQMoECore", "Links"])],
    targets: [
        .binaryTarget(name: "TinyQMoECore", path: "TinyQMoECore.xcframework"),
        .target(name: "Links", linkerSettings: [.linkedLibrary("c++")]),
    ]
)
