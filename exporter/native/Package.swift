// swift-tools-version: 5.9
// The codec core and sessions for Swift: `import TinyQMoECore` gives the C interface of include/tinyqmoe.
//
// No unsafe flags: SwiftPM refuses them in a package that another one depends on. The same bits as everywhere do not
// need -ffp-contract=off, because each file that computes with floats has #pragma STDC FP_CONTRACT OFF.
import PackageDescription

let package = Package(
    name: "tinyqmoe",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "TinyQMoECore", targets: ["TinyQMoECore"])],
    targets: [
        .target(
            name: "TinyQMoECore",
            path: ".",
            exclude: ["llm/MANIFEST.md"],
            sources: ["core", "llm"],
            publicHeadersPath: "include",
            cxxSettings: [.headerSearchPath("core")]
        )
    ],
    cxxLanguageStandard: .cxx17
)
