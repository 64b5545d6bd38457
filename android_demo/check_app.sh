#!/usr/bin/env bash
# The app as far as a computer without Android's SDK can check it: types, resources, manifest, and the presenters' tests.
#
# CORE_CLASSES, a class path, spares compiling core and native again. What is missing is SKIPPED and counted; the
# versions below are those that it was written with. Exit code 1: a check failed.
set -euo pipefail
cd "$(dirname "$0")"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/tiny-qmoe/android
kotlin=$cache/kotlin-2.4.20/lib
jar=$cache/android-23.jar
framework=/usr/share/android-framework-res/framework-res.apk
junit=/usr/share/java/junit4.jar:/usr/share/java/hamcrest-core.jar
runtime=$kotlin/kotlin-stdlib.jar:$kotlin/kotlinx-coroutines-core-jvm.jar
stubs=$(compgen -G "$cache/chaquopy_stubs_android-36*.whl" | head -1 || true)
app=app/src/main
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
passed=0 skipped=0

pass() { passed=$((passed + 1)); echo "ok: $1"; }
skip() { skipped=$((skipped + 1)); echo "SKIPPED: $1. It needs $2."; }
fail() { echo "FAILED: $1"; exit 1; }

kotlinc() {
  java -cp "$kotlin/kotlin-compiler.jar" org.jetbrains.kotlin.cli.jvm.K2JVMCompiler -Werror -no-stdlib -no-reflect \
    -jvm-target 17 "$@"
}

# What is missing, and how to get it; empty: all is there.
need() {
  local missing=()
  for tool in "$@"; do
    case $tool in
      java) command -v javac >/dev/null || missing+=("a JDK of 17 or newer (Debian: openjdk-17-jdk-headless)") ;;
      kotlin) [[ -e $kotlin/kotlin-compiler.jar ]] || missing+=("npm's kotlin-compiler (android_demo/get_tools.sh)") ;;
      junit) [[ -e ${junit%%:*} ]] || missing+=("JUnit 4 (Debian: junit4)") ;;
      aapt2) command -v aapt2 >/dev/null || missing+=("aapt2 (Debian: aapt)") ;;
      framework) [[ -e $framework ]] || missing+=("Android's own resources (Debian: android-framework-res)") ;;
      jar) [[ -e $jar ]] || missing+=("android.jar of API 23 (android_demo/get_tools.sh)") ;;
      stubs) [[ -n $stubs ]] || missing+=("PyPI's chaquopy-stubs-android 36 (android_demo/get_tools.sh)") ;;
    esac
  done
  local IFS=,
  echo "${missing[*]}"
}

check_resources() {
  local missing
  missing=$(need aapt2 framework)
  [[ -z $missing ]] || { skip "resources and manifest" "$missing"; return; }
  aapt2 compile --dir "$app/res" -o "$out/res.zip"
  # These attributes are newer than Debian's framework; test_app_files.py looks for them in API 36.
  sed '/android:dataExtractionRules=/d; /android:enableOnBackInvokedCallback=/d
       s/<manifest /<manifest package="com.tinyqmoe.app" /' "$app/AndroidManifest.xml" >"$out/AndroidManifest.xml"
  aapt2 link -I "$framework" --manifest "$out/AndroidManifest.xml" --min-sdk-version 28 --target-sdk-version 36 \
    --java "$out/r" -o "$out/base.apk" "$out/res.zip"
  pass "resources and manifest, compiled and linked to $(stat -c %s "$out/base.apk") bytes"
  # A name that is not there has to be an error, or the line above says nothing.
  sed -i 's/@string\/app_name/@string\/app_nome/' "$out/AndroidManifest.xml"
  ! aapt2 link -I "$framework" --manifest "$out/AndroidManifest.xml" -o "$out/bad.apk" "$out/res.zip" 2>/dev/null ||
    fail "a string that is not there was not refused"
  pass "a string that is not there is refused"
}

compile_core() {
  core=${CORE_CLASSES:-$out/core.jar}
  [[ -n ${CORE_CLASSES:-} ]] || kotlinc -cp "$runtime" -d "$core" core/src/main/kotlin native/src/main/kotlin
}

# The types of the app: Android's API 23, the newer classes that it names, and R.
check_types() {
  local missing
  missing=$(need java kotlin jar stubs aapt2 framework)
  [[ -z $missing ]] || { skip "types of the app" "$missing"; return; }
  mapfile -t files < <(find "$app/kotlin" -name '*.kt')
  python3 tools/newer_api.py --jar "$jar" --stubs "$stubs" --out "$out/newer.jar" "${files[@]}" \
    $(find core/src/main native/src/main -name '*.kt')
  mkdir "$out/r-classes"
  javac -d "$out/r-classes" $(find "$out/r" -name R.java)
  kotlinc -no-jdk -cp "$out/newer.jar:$jar:$runtime:$core:$out/r-classes" -d "$out/app.jar" "${files[@]}"
  pass "types of ${#files[@]} Kotlin files of the app, against API 36"
  refuses_misspelt
}

# The generated classes have to have the right names only.
refuses_misspelt() {
  local status
  for status in SEVERE SEVER; do
    mkdir -p "$out/$status"
    echo "class Probe { int status = android.os.PowerManager.THERMAL_STATUS_$status; }" >"$out/$status/Probe.java"
    if javac -cp "$out/newer.jar:$jar" -d "$out/$status" "$out/$status/Probe.java" 2>/dev/null; then
      [[ $status == SEVERE ]] || fail "the misspelt constant $status was not refused"
    else
      [[ $status == SEVER ]] || fail "the constant $status of API 29 is not there"
    fi
  done
  pass "a misspelt constant of a newer class is refused"
}

# The presenters know no Android, so they and their tests are compiled without it, and run here.
check_presenters() {
  local missing tests
  missing=$(need java kotlin junit)
  [[ -z $missing ]] || { skip "tests of the presenters" "$missing"; return; }
  compile_core
  kotlinc -cp "$runtime:$core:$junit:$kotlin/kotlin-test.jar:$kotlin/kotlin-test-junit.jar" -d "$out/presenters.jar" \
    "$app/kotlin/com/tinyqmoe/app/presenter" app/src/test/kotlin
  mapfile -t tests < <(cd app/src/test/kotlin && find . -name '*Test.kt' | sed 's#^\./##; s#/#.#g; s#\.kt$##')
  java -cp "$out/presenters.jar:$core:$runtime:$junit:$kotlin/kotlin-test.jar:$kotlin/kotlin-test-junit.jar" \
    org.junit.runner.JUnitCore "${tests[@]}" | tee "$out/junit.txt"
  pass "presenters: $(sed -n 's/^OK (\(.*\))$/\1/p' "$out/junit.txt")"
}

check_resources
check_presenters
check_types
echo "check_app: $passed passed, $skipped SKIPPED"
