#!/bin/bash
# Checks what Linux can of android_demo: compiles the Kotlin and the JNI library, and runs the tests on a JVM.
#
#   android_demo/check.sh            of the demo model
#   SMOLLM2_BUNDLE=DIR …/check.sh    and of a bundle of SmolLM2
#
# PYTHON is the Python with tiny-qmoe (default: python3). Results are kept in OUT (default: a folder of the cache), so
# that a second run compiles only what changed. It installs nothing: what is missing is SKIPPED, counted and named.
# Exit code 0: all that could run passed; 1: something failed.
set -u
HERE=$(cd "$(dirname "$0")" && pwd)
ROOT=$(dirname "$HERE")
source "$HERE/toolchain.sh"
OUT="${OUT:-$cache/android-check}"
PYTHON="${PYTHON:-python3}"
passed=0 failed=0 skipped=0

say() { printf '%-8s %s\n' "$1" "$2"; }
skip() { say SKIPPED "$1: $2 is missing; get it with: $3"; skipped=$((skipped + 1)); }

# step NAME COMMAND...: its output is shown where it fails.
step() {
  local name=$1 begin=$SECONDS
  shift
  if "$@" >"$OUT/step.log" 2>&1; then
    say ok "$name ($((SECONDS - begin)) s)"
    passed=$((passed + 1))
  else
    say FAILED "$name"
    tail -60 "$OUT/step.log"
    failed=$((failed + 1))
    return 1
  fi
}

finish() {
  echo "android_demo: $passed steps passed, $failed failed, $skipped skipped"
  [ "$failed" -eq 0 ]
  exit
}

# newer FILE FOLDERS...: whether nothing in the folders changed since FILE was made.
newer() { [ -e "$1" ] && [ -z "$(find "${@:2}" -newer "$1" -type f -print -quit)" ]; }

# kotlin OUT CLASSPATH ARGUMENTS...
kotlin() {
  local out=$1 classpath=$2
  shift 2
  newer "$out/.made" "$HERE"/*/src && return 0
  rm -rf "$out"
  kotlinc -cp "$runtime:$classpath" -d "$out" "$@" && touch "$out/.made"
}

# The JNI library, with both engines.
library() {
  local jdk executorch
  jdk=$(dirname "$(dirname "$(readlink -f "$(command -v javac)")")")
  # CMake refuses a folder that was configured for another checkout.
  grep -qsx "CMAKE_HOME_DIRECTORY:INTERNAL=$HERE/native" "$OUT/jni/CMakeCache.txt" || rm -rf "$OUT/jni"
  executorch=$("$PYTHON" -c 'import executorch; print(next(iter(executorch.__path__)))') &&
    cmake -S "$HERE/native" -B "$OUT/jni" -DCMAKE_BUILD_TYPE=Release -DTINYQMOE_JNI_INCLUDE="$jdk/include" \
      -DTINYQMOE_EXECUTORCH_INCLUDE="$executorch/include" \
      -DTINYQMOE_EXECUTORCH_LIBRARIES="$executorch/lib/libexecutorch.so;$executorch/lib/libexecutorch_threadpool.so" &&
    cmake --build "$OUT/jni" --target tinyqmoe_jni --parallel 2
}

# real FOLDER BUNDLE: a bundle and what the command line says of it.
real() {
  local folder="$OUT/real/$1" question="What is the kite's name?"
  rm -rf "$folder" && mkdir -p "$folder" && ln -s "$(realpath "$2")" "$folder/bundle" &&
    printf '%s' "$question" >"$folder/question.txt" &&
    tinyqmoe run "$folder/bundle" --backend native --chat --prompt "$question" --max-new-tokens 24 --json "$folder/run.json" &&
    tinyqmoe parity "$folder/bundle" --backend native --json "$folder/parity.json"
}

tinyqmoe() { (cd "$ROOT" && PYTHONPATH="$ROOT" "$PYTHON" -c 'from exporter.cli.start import main; main()' "$@"); }

demo_bundle() {
  [ -f "$OUT/demo/manifest.json" ] && newer "$OUT/demo/manifest.json" "$ROOT/exporter" && return 0
  rm -rf "$OUT/demo"
  tinyqmoe export "$ROOT/exporter/demo/model" "$OUT/demo" --scheme int8 --context 128 --target android
}

# test_classes FOLDER: names of the test classes in it.
test_classes() { find "$1" -name '*Test.kt' -printf '%P\n' | sed 's/\.kt$//; s,/,.,g' | sort; }

# junit CLASSES...: fails on a warning of -Xcheck:jni too.
junit() {
  rm -rf "$OUT/tmp" && mkdir "$OUT/tmp"
  java -Xcheck:jni -Xmx1g -Djava.io.tmpdir="$OUT/tmp" -Djava.library.path="$OUT/jni" -Dtinyqmoe.root="$ROOT" -Dtinyqmoe.real="$OUT/real" \
    -cp "$OUT/main:$OUT/test:$junit:$runtime" org.junit.runner.JUnitCore "$@" | tee "$OUT/junit.log"
  [ "${PIPESTATUS[0]}" -eq 0 ] && ! grep -E 'WARNING in native|FATAL ERROR in native' "$OUT/junit.log"
}

mkdir -p "$OUT"
if ! command -v javac >/dev/null; then skip "everything" "a JDK" "apt install openjdk-17-jdk-headless"; finish; fi
if [ ! -f "$kotlin/kotlin-compiler.jar" ]; then skip "everything" "the Kotlin compiler" "android_demo/get-kotlin.sh"; finish; fi
step "core and native compile" kotlin "$OUT/main" "" "$HERE/core/src/main/kotlin" "$HERE/native/src/main/kotlin" || finish
if [ ! -f /usr/share/java/junit4.jar ]; then skip "all tests" "JUnit" "apt install junit4"; finish; fi
step "their tests compile" kotlin "$OUT/test" "$OUT/main:$junit" -Xfriend-paths="$OUT/main" \
  "$HERE/core/src/test/kotlin" "$HERE/native/src/test/kotlin" || finish
step "tests of the core" junit $(test_classes "$HERE/core/src/test/kotlin") && tail -2 "$OUT/junit.log" | head -1
if ! "$PYTHON" -c 'import exporter, torch' 2>/dev/null && ! (cd "$ROOT" && "$PYTHON" -c 'import exporter, torch' 2>/dev/null); then
  skip "tests with real tokens" "tiny-qmoe" "pip install -e . and PYTHON=/path/of/its/python"
elif ! command -v cmake >/dev/null; then
  skip "tests with real tokens" "CMake" "apt install cmake g++"
elif step "the JNI library builds" library && step "a bundle of the demo model" demo_bundle && step "its answers" real demo "$OUT/demo"; then
  if [ -n "${SMOLLM2_BUNDLE:-}" ]; then
    step "answers of SmolLM2" real smollm2 "$SMOLLM2_BUNDLE"
  else
    rm -rf "$OUT/real/smollm2"
    skip "SmolLM2" "a bundle" "tinyqmoe export a checkpoint of it, and SMOLLM2_BUNDLE=its folder"
  fi
  step "tests with real tokens" junit $(test_classes "$HERE/native/src/test/kotlin") && grep -E 'tokens/s|^OK' "$OUT/junit.log"
fi
export OUT # its classes, library and bundle serve the app's tests too
"$HERE/check_app.sh" || failed=$((failed + 1))
finish
