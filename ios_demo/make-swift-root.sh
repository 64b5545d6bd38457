#!/bin/sh
# Makes a Debian trixie with Swift 6 in a folder, for check.sh on a Linux machine without Swift: 3.4 GB, about 4 minutes.
# It needs root and debootstrap. usage: make-swift-root.sh [FOLDER]
set -eu
root=${1:-${SWIFT_ROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/tiny-qmoe/swift-root}}
packages="swiftlang swiftlang-dev libstdc++-14-dev libc6-dev g++ git python3"

if [ "$(id -u)" != 0 ]; then echo "make-swift-root.sh: run it as root: it makes a chroot" >&2; exit 2; fi
if ! command -v debootstrap >/dev/null; then echo "make-swift-root.sh: install debootstrap first" >&2; exit 5; fi
if [ -e "$root" ]; then echo "make-swift-root.sh: $root exists: remove it, or name another folder" >&2; exit 2; fi

# Under another name until it is complete.
partial=$root.partial
rm -rf "$partial"
mkdir -p "$(dirname "$root")"
debootstrap --variant=minbase trixie "$partial"
unshare -mpf --mount-proc="$partial/proc" chroot "$partial" sh -c "
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages
  apt-get clean"
mv "$partial" "$root"
echo "Swift is in $root"
