#!/bin/bash
# Checks LZWCoreML, AppModel and App: their files, their tests, and the types of what touches Apple's frameworks against
# the stubs in tools/stubs. check.sh calls it; it also runs alone. Its variables are those of check.sh.
set -u
here=$(cd "$(dirname "$0")" && pwd)
repository=$(dirname "$here")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tiny-qmoe
root=${SWIFT_ROOT:-$cache/swift-root}
build=${LZW_BUILD:-$cache/lzwkit-build}
python=${PYTHON:-python3}
stubs=$build/stubs
passed=0 failed=0 skipped=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
log=$scratch/log

pass() { echo "PASSED ios app: $1"; passed=$((passed + ${2:-1})); }
fail() { echo "FAILED ios app: $1"; failed=$((failed + 1)); grep -E "error|failed|Fatal" "$log" | sort -u | head -20; }
skip() { echo "SKIPPED ios app: $1"; skipped=$((skipped + 1)); }
finish() { echo "ios app: $passed passed, $failed failed, $skipped skipped"; [ "$failed" = 0 ]; exit $?; }

# Runs a command of the toolchain; in the chroot the folders have the names that they have outside.
swift_run() {
  if command -v swift >/dev/null; then "$@"; return; fi
  local mounts="mount --bind /dev $root/dev" folder
  for folder in "$repository" "$build" "$LZW_MADE" "$scratch"; do
    mkdir -p "$root$folder"
    mounts="$mounts && mount --bind $folder $root$folder"
  done
  unshare -mpf --mount-proc="$root/proc" sh -c "$mounts && exec chroot $root env LZW_MADE=$LZW_MADE \"\$@\"" sh "$@"
}

# check NAME COMMAND...: passes when the command does.
check() {
  local name=$1
  shift
  if "$@" >"$log" 2>&1; then pass "$name"; else fail "$name"; fi
}

# refuse NAME WORD COMMAND...: passes when the command fails and says WORD.
refuse() {
  local name=$1 word=$2
  shift 2
  if ! "$@" >"$log" 2>&1 && grep -q "error: .*$word" "$log"; then pass "$name"; else fail "$name"; fi
}

tests() {
  local linker=()
  # libswiftObservation.so of Swift 6.0 on Linux lacks a symbol that nothing here calls.
  [ "$(uname)" = Darwin ] || linker=(-Xlinker --allow-shlib-undefined)
  if swift_run swift test --package-path "$here/$1" --scratch-path "$build" "${linker[@]}" >"$log" 2>&1; then
    pass "tests of $1" "$(grep -c '^Test Case .* passed' "$log")"
  else
    fail "tests of $1"
  fi
}

stub() {
  local module=$1
  shift
  check "stub of $module" swift_run swiftc -emit-module -swift-version 6 -module-name "$module" -I "$stubs" \
    -o "$stubs/$module.swiftmodule" "$@"
}

# types MODULE FILE...: checks the types of a module's files, and makes the module for those that import it.
types() {
  local module=$1
  shift
  swift_run swiftc -emit-module -parse-as-library -swift-version 6 -warnings-as-errors -module-name "$module" \
    -I "$stubs" -I "$build/debug/Modules" -I "$repository/exporter/native/include" \
    -o "$stubs/$module.swiftmodule" "$@"
}

# misspell FILE MEMBER WORDS MODULE FILE...: the files with a member misspelt in one of them must be refused in these words.
misspell() {
  local file=$1 member=$2 words=$3 module=$4 kept=() other
  shift 4
  for other in "$@"; do [ "$other" = "$file" ] || kept+=("$other"); done
  sed "s/\b$member\b/${member}x/" "$file" >"$scratch/$(basename "$file")"
  refuse "a misspelt $member is refused" "$words" types "$module" "${kept[@]}" "$scratch/$(basename "$file")"
}

if "$python" -c "import yaml" 2>"$log"; then
  check "project, property lists, assets and strings" "$python" "$here/tools/app_files.py"
else
  skip "project, property lists, assets and strings: $python has no yaml (PYTHON names another)"
fi

if ! command -v swift >/dev/null && { [ ! -L "$root/usr/bin/swift" ] || [ "$(id -u)" != 0 ]; }; then
  skip "no swift on the PATH, and none in $root for root: ios_demo/make-swift-root.sh makes it"
  finish
fi
if [ -z "${LZW_MADE:-}" ]; then
  export LZW_MADE=$scratch/made
  mkdir "$LZW_MADE"
  check "a bundle of the demo model" "${TINYQMOE:-tinyqmoe}" export "$repository/exporter/demo/model" "$LZW_MADE/demo" \
    --scheme int8 --context 128
fi
mkdir -p "$stubs"

tests LZWCoreML
tests AppModel

sources=("$here"/LZWCoreML/Sources/LZWCoreML/*.swift "$here"/App/Sources/*.swift)
check "all Swift of LZWCoreML and App is read for iOS" \
  swift_run swiftc -frontend -parse -target arm64-apple-ios17.0 "${sources[@]}"
if [ "$(uname)" = Darwin ]; then
  skip "types against the stubs: on a Mac, build the app with Xcode"
  finish
fi

for module in CoreML UniformTypeIdentifiers os UIKit; do stub "$module" "$here/tools/stubs/$module.swift"; done
stub SwiftUI "$here"/tools/stubs/SwiftUI{,Controls}.swift
coreml=("$here"/LZWCoreML/Sources/LZWCoreML/*.swift)
app=("$here"/App/Sources/*.swift "$here/tools/stubs/AppleFoundation.swift")
check "types of LZWCoreML" types LZWCoreML "${coreml[@]}"
check "types of App" types TinyQMoE "${app[@]}"
misspell "$here/LZWCoreML/Sources/LZWCoreML/CustomOpEngine.swift" outputBackings "no member 'outputBackingsx'" \
  LZWCoreML "${coreml[@]}"
misspell "$here/LZWCoreML/Sources/LZWCoreML/CustomLayers.swift" outputShapes "does not conform to protocol 'MLCustomLayer'" \
  LZWCoreML "${coreml[@]}"
misspell "$here/App/Sources/RootView.swift" isIdleTimerDisabled "no member 'isIdleTimerDisabledx'" TinyQMoE "${app[@]}"
finish
