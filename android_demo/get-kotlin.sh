#!/usr/bin/env bash
# Puts the Kotlin compiler, with its standard library and coroutines, into the cache folder: 90 MB by npm.
set -euo pipefail
source "$(dirname "$0")/toolchain.sh"
if [[ ! -e $kotlin/kotlin-compiler.jar ]]; then
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/kotlin.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  (cd "$work" && npm pack --silent "kotlin-compiler@$kotlin_version" >/dev/null && tar xzf ./*.tgz)
  mv "$work/package" "$(dirname "$kotlin")"
fi
echo "$kotlin"
