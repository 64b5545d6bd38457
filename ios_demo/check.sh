#!/bin/sh
# Builds and tests ios_demo: with `swift` of this machine, or in the chroot that make-swift-root.sh makes.
#   SWIFT_ROOT  folder of the chroot           LZW_BUILD  folder of what is built
#   TINYQMOE    the command, such as a path    LZW_MADE   folder of bundles that a run before made, to be used again
#   LZW_CONFIGURATION  debug or release        LZW_REAL   a bundle of another model, with all packages, to run too
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repository=$(dirname "$here")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tiny-qmoe
root=${SWIFT_ROOT:-$cache/swift-root}
build=${LZW_BUILD:-$cache/lzwkit-build}
made=${LZW_MADE:-}

# The app has a script of its own, some of which needs no Swift.
check_app() { if [ -x "$here/check_app.sh" ]; then "$here/check_app.sh"; fi; }
skip() { echo "SKIPPED ios_demo: $1"; echo "ios_demo: 0 passed, 0 failed, 1 skipped"; check_app; exit; }

# Runs a command of the toolchain; in the chroot the folders have the names that they have outside.
swift_run() {
  if command -v swift >/dev/null; then "$@"; return; fi
  mounts="mount --bind /dev $root/dev"
  for folder in "$repository" "$build" "$made" ${LZW_REAL:+"$LZW_REAL"}; do
    mkdir -p "$root$folder"
    mounts="$mounts && mount --bind $folder $root$folder"
  done
  unshare -mpf --mount-proc="$root/proc" sh -c "$mounts && exec chroot $root env LZW_MADE=$made LZW_REAL=${LZW_REAL:-} \"\$@\"" sh "$@"
}

if ! command -v swift >/dev/null; then
  [ -L "$root/usr/bin/swift" ] || skip "there is no swift on the PATH and none in $root: ios_demo/make-swift-root.sh makes it"
  [ "$(id -u)" = 0 ] || skip "the chroot $root needs root"
fi

if [ -z "$made" ]; then
  made=$(mktemp -d)
  trap 'rm -rf "$made"' EXIT
  "$here/make-bundles.sh" "$made"
fi
export LZW_MADE="$made"
mkdir -p "$build"
log=$made/swift-test.log
# Without the caching option SwiftPM does not see a source file that was added to the core.
status=0
swift_run swift test --package-path "$here/LZWKit" --scratch-path "$build" -c "${LZW_CONFIGURATION:-debug}" \
  -Xswiftc -enable-testing --disable-build-manifest-caching \
  >"$log" 2>&1 || status=$?
tests=$(grep -c "^Test Case .* passed" "$log" || true)
failed=$(grep -c "^Test Case .* failed" "$log" || true)
skipped=$(grep -c "^Test Case .* skipped" "$log" || true)
if [ "$status" != 0 ] || [ "$tests" = 0 ]; then
  grep -E "error:|failed" "$log" | head -40 || tail -40 "$log"
  echo "FAILED ios_demo: LZWKit"
  echo "ios_demo: $tests passed, $failed failed, $skipped skipped"
  exit 1
fi
echo "PASSED ios_demo: LZWKit"
echo "ios_demo: $tests passed, 0 failed, $skipped skipped"
check_app
