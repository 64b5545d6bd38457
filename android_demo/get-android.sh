#!/usr/bin/env bash
# Puts what check_app.sh compiles the app against into the cache folder: android.jar of API 23, which only Debian 11
# has, and typed stubs of API 36 from PyPI. It installs nothing. Needs pip, and apt with Debian's keys.
set -euo pipefail
source "$(dirname "$0")/toolchain.sh"
jar_sha256=4475aa3fe1fc28bdb87ae6351d6ccff58f344a1b9e2fe685f7a6fee41ba68613
mkdir -p "$cache"
cd "$cache"

[[ -e $android_stubs ]] ||
  python3 -m pip download --quiet --no-deps --dest . "chaquopy-stubs-android==$stubs_version"

# Debian 11 by the mirror that this machine uses, with package lists of its own.
if [[ ! -e $android_jar ]]; then
  root=$(mktemp -d)
  trap 'rm -rf "$root"' EXIT
  mkdir -p "$root/lists/partial" "$root/archives/partial"
  touch "$root/status"
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/$' | head -1)
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bullseye main" >"$root/sources.list"
  options=(-qq -o "Dir::Etc::SourceList=$root/sources.list" -o Dir::Etc::SourceParts=/dev/null
           -o "Dir::State::Lists=$root/lists" -o "Dir::Cache::Archives=$root/archives"
           -o "Dir::State::status=$root/status" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update
  (cd "$root" && apt-get "${options[@]}" download libandroid-23-java && dpkg -x libandroid-23-java_*.deb .)
  echo "$jar_sha256  $root/usr/share/java/com.android.android-23.jar" | sha256sum --check --quiet
  mv "$root/usr/share/java/com.android.android-23.jar" "$android_jar"
fi
echo "$cache"
