#!/usr/bin/env bash
# The app as far as a computer without Android's SDK can check it: types, resources, manifest, and the presenters' tests.
#
# check.sh calls this after it compiled the core; alone, it compiles the core itself, and the test with a real model
# needs what check.sh made in OUT. What is missing is SKIPPED and counted. Exit code 1: a check failed.
set -euo pipefail
cd "$(dirname "$0")"

source toolchain.sh
made=${OUT:-$cache/android-check}
framework=/usr/share/android-framework-res/framework-res.apk
tests=$junit:$kotlin/kotlin-test.jar:$kotlin/kotlin-test-junit.jar
app=app/src/main
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
passed=0 skipped=0

pass() { passed=$((passed + 1)); echo "ok       $1 ($SECONDS s so far)"; }
skip() { skipped=$((skipped + 1)); echo "SKIPPED  $1: $2"; }
fail() { echo "FAILED   $1"; exit 1; }

# What of these is missing, and how to get it; empty: all is there.
missing() {
  local tool lacks=()
  for tool in "$@"; do
    case $tool in
      java) command -v javac >/dev/null || lacks+=("a JDK is missing; get it with: apt install openjdk-17-jdk-headless") ;;
      kotlin) [[ -e $kotlin/kotlin-compiler.jar ]] || lacks+=("the Kotlin compiler is missing; get it with: android_demo/get-kotlin.sh") ;;
      junit) [[ -e ${junit%%:*} ]] || lacks+=("JUnit is missing; get it with: apt install junit4") ;;
      aapt2) command -v aapt2 >/dev/null || lacks+=("aapt2 is missing; get it with: apt install aapt") ;;
      framework) [[ -e $framework ]] || lacks+=("Android's own resources are missing; get them with: apt install android-framework-res") ;;
      jar) [[ -e $android_jar ]] || lacks+=("android.jar is missing; get it with: android_demo/get-android.sh") ;;
      stubs) [[ -e $android_stubs ]] || lacks+=("stubs of API 36 are missing; get them with: android_demo/get-android.sh") ;;
    esac
  done
  ((${#lacks[@]} == 0)) || printf '%s. ' "${lacks[@]}"
}

check_resources() {
  local lacks
  lacks=$(missing aapt2 framework)
  [[ -z $lacks ]] || { skip "resources and manifest" "$lacks"; return; }
  aapt2 compile --dir "$app/res" -o "$out/res.zip"
  # These attributes are newer than Debian's framework, which is of API 29.
  sed '/android:dataExtractionRules=/d; /android:enableOnBackInvokedCallback=/d
       s/<manifest /<manifest package="com.tinyqmoe.app" /' "$app/AndroidManifest.xml" >"$out/AndroidManifest.xml"
  aapt2 link -I "$framework" --manifest "$out/AndroidManifest.xml" --min-sdk-version 28 --target-sdk-version 36 \
    --java "$out/r" -o "$out/base.apk" "$out/res.zip"
  pass "resources and manifest: compiled and linked"
  # A name that is not there has to be an error, or the line above says nothing.
  sed 's/@string\/app_name/@string\/app_nome/' "$out/AndroidManifest.xml" >"$out/bad.xml"
  ! aapt2 link -I "$framework" --manifest "$out/bad.xml" -o "$out/bad.apk" "$out/res.zip" 2>/dev/null ||
    fail "a string that is not there was not refused"
  pass "a string that is not there is refused"
}

# The classes of core and native: those that check.sh made, if no source is newer.
find_core() {
  [[ -z ${core:-} ]] || return 0
  core=$made/main
  if [[ ! -e $core/.made || -n $(find core/src/main native/src/main -newer "$core/.made" -type f -print -quit) ]]; then
    core=$out/core
    kotlinc -cp "$runtime" -d "$core" core/src/main/kotlin native/src/main/kotlin
  fi
}

# The presenters know no Android, so they and their tests are compiled without it, and run here.
check_presenters() {
  local lacks path classes
  lacks=$(missing java kotlin junit)
  [[ -z $lacks ]] || { skip "tests of the presenters" "$lacks"; return; }
  find_core
  path=$runtime:$core:$tests
  kotlinc -cp "$path" -d "$out/presenters" "$app/kotlin/com/tinyqmoe/app/presenter" app/src/test/kotlin
  if [[ -e $made/jni/libtinyqmoe_jni.so && -e $made/demo/manifest.json ]]; then
    export TINYQMOE_BUNDLE=$made/demo
  else
    skip "the app's parts with a real model" "its library and bundle are missing; get them with: android_demo/check.sh"
  fi
  mapfile -t classes < <(find app/src/test/kotlin -name '*Test.kt' -printf '%P\n' | sed 's/\.kt$//; s,/,.,g' | sort)
  java -Xcheck:jni -Xmx1g -Djava.library.path="$made/jni" -Djava.io.tmpdir="$out" -cp "$out/presenters:$path" org.junit.runner.JUnitCore \
    "${classes[@]}" | tee "$out/junit.log"
  ! grep -E 'WARNING in native|FATAL ERROR in native' "$out/junit.log" || fail "the JNI calls"
  pass "tests of the presenters: $(grep -E '^OK' "$out/junit.log")"
}

# The types of the app: Android's API 23, the newer classes that it names, and R.
check_types() {
  local lacks files
  lacks=$(missing java kotlin jar stubs aapt2 framework)
  [[ -z $lacks ]] || { skip "types of the app" "$lacks"; return; }
  mapfile -t files < <(find "$app/kotlin" -name '*.kt')
  find core/src/main native/src/main -name '*.kt' -print0 |
    xargs -0 python3 tools/newer_api.py --jar "$android_jar" --stubs "$android_stubs" --out "$out/newer.jar" "${files[@]}"
  find_core
  javac -d "$out/r" "$out/r/com/tinyqmoe/app/R.java"
  kotlinc -no-jdk -cp "$out/newer.jar:$android_jar:$runtime:$core:$out/r" -d "$out/app" "${files[@]}"
  pass "types of the app: ${#files[@]} Kotlin files"
  refuses_misspelt
}

# The generated classes have to have the right names only.
refuses_misspelt() {
  local name
  for name in SEVERE SEVER; do
    echo "class Probe { int status = android.os.PowerManager.THERMAL_STATUS_$name; }" >"$out/Probe.java"
    if javac -cp "$out/newer.jar:$android_jar" -d "$out" "$out/Probe.java" 2>/dev/null; then
      [[ $name == SEVERE ]] || fail "the misspelt constant $name was not refused"
    else
      [[ $name == SEVER ]] || fail "the constant $name of API 29 is not there"
    fi
  done
  pass "a misspelt constant of a newer class is refused"
}

check_resources
check_presenters
check_types
echo "the app: $passed steps passed, 0 failed, $skipped skipped"
