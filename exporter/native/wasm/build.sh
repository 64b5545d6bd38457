#!/bin/sh
# Builds tinyqmoe.wasm, a session as a library for WebAssembly, with session.mjs for JavaScript: build.sh FOLDER
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cmake -S "$here/.." -B "$1" --toolchain "$here/toolchain.cmake" -DCMAKE_BUILD_TYPE=Release
cmake --build "$1" --target tinyqmoe --parallel 4
ls -l "$1/tinyqmoe.wasm"
