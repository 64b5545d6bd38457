#!/bin/sh
# Makes a Swift package with the core and its sessions already compiled, for apps that build no C++: make-xcframework.sh FOLDER
#
# FOLDER must not exist. It becomes a package with the name and the product of the one that is built from source, beside
# a .zip of its XCFramework for `.binaryTarget(url:checksum:)`. Needs Xcode 15 or later, and CMake.
set -eu
native=$(cd "$(dirname "$0")/.." && pwd)
module=TinyQMoECore

stop() { echo "make-xcframework.sh: $2" >&2; exit "$1"; }
[ $# = 1 ] || stop 2 "usage: make-xcframework.sh FOLDER"
out=$1
[ ! -e "$out" ] || stop 2 "$out exists: remove it, or name another folder"
for tool in xcodebuild swift ditto; do
  command -v "$tool" >/dev/null || stop 5 "there is no $tool: it comes with Xcode, on a Mac"
done
command -v cmake >/dev/null || stop 5 "there is no cmake: brew install cmake"

# The oldest systems are those of the package that is built from source.
oldest() { sed -n "s/.*\.$1(\.v\([0-9]*\)).*/\1.0/p" "$native/Package.swift"; }
ios=$(oldest iOS)
macos=$(oldest macOS)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# slice NAME SYSTEM SDK ARCHITECTURES OLDEST. CMake's own trials are not linked, as a program for a phone has to be signed.
slice() {
  cmake -S "$native" -B "$work/$1" -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME="$2" -DCMAKE_OSX_SYSROOT="$3" \
    "-DCMAKE_OSX_ARCHITECTURES=$4" -DCMAKE_OSX_DEPLOYMENT_TARGET="$5" -DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY
  cmake --build "$work/$1" --target tinyqmoe_core --parallel 8
}
slice ios iOS iphoneos arm64 "$ios"
slice simulator iOS iphonesimulator "arm64;x86_64" "$ios"
slice macos Darwin macosx "arm64;x86_64" "$macos"

# The module map lies in a folder of its own, which clang finds by the module's name: Xcode copies the headers of all
# XCFrameworks of an app into one folder, where two maps would meet.
mkdir -p "$work/headers/$module"
cp -R "$native/include/tinyqmoe" "$work/headers"
sed 's|header "|&../|' "$native/include/module.modulemap" >"$work/headers/$module/module.modulemap"

package=$work/package
cp -R "$native/apple/package" "$package"
xcodebuild -create-xcframework -output "$package/$module.xcframework" \
  -library "$work/ios/libtinyqmoe_core.a" -headers "$work/headers" \
  -library "$work/simulator/libtinyqmoe_core.a" -headers "$work/headers" \
  -library "$work/macos/libtinyqmoe_core.a" -headers "$work/headers"
ditto -c -k --keepParent "$package/$module.xcframework" "$package/$module.xcframework.zip"
cp "$native/LICENSE" "$package"
checksum=$(cd "$package" && swift package compute-checksum "$module.xcframework.zip")
mkdir -p "$(dirname "$out")"
mv "$package" "$out"

echo "$out is the package. From a server, its binary target is:"
echo ".binaryTarget(name: \"$module\", url: \"https://YOUR-SERVER/$module.xcframework.zip\", checksum: \"$checksum\")"
