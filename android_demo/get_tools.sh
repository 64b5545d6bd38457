#!/usr/bin/env bash
# Brings what check.sh and check_app.sh need and Debian 12 has not, into a folder of the cache: the Kotlin compiler, android.jar of
# API 23 and typed stubs of API 36. It installs nothing. Needs npm, pip, and apt with Debian's keys.
set -euo pipefail
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tiny-qmoe/android
jar_sha256=4475aa3fe1fc28bdb87ae6351d6ccff58f344a1b9e2fe685f7a6fee41ba68613
mkdir -p "$cache"
cd "$cache"

if [[ ! -e kotlin-2.4.20 ]]; then
  tar xzf "$(npm pack --silent kotlin-compiler@2.4.20)"
  mv package kotlin-2.4.20
  rm kotlin-compiler-2.4.20.tgz
fi

compgen -G "chaquopy_stubs_android-36*.whl" >/dev/null ||
  python3 -m pip download --quiet --no-deps --dest . chaquopy-stubs-android==36.20260406

# libandroid-23-java is in Debian 11 only: taken from the mirror that this machine uses, with lists of its own.
if [[ ! -e android-23.jar ]]; then
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
  mv "$root/usr/share/java/com.android.android-23.jar" android-23.jar
fi
echo "in $cache: $(ls | tr '\n' ' ')"
