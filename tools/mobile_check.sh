#!/usr/bin/env bash
# Checks the apps and what they link, stage by stage, as far as Linux can: make mobile-check.
#
# PYTHON is the Python with tiny-qmoe and its tests (default: that of .venv). Nothing is installed: what a missing tool
# would check is SKIPPED and counted, and the lines of its stage name the tool. Exit code 1: a check failed.
set -uo pipefail
cd "$(dirname "$0")/.."
if [[ -z ${PYTHON:-} ]]; then PYTHON=python3; [[ ! -x .venv/bin/python ]] || PYTHON=$PWD/.venv/bin/python; fi
# The command tinyqmoe of that Python, for the scripts of the apps.
TINYQMOE=${TINYQMOE:-$(dirname "$(command -v "$PYTHON")")/tinyqmoe}
export PYTHON TINYQMOE

log=$(mktemp)
trap 'rm -f "$log"' EXIT
total_passed=0 total_failed=0 total_skipped=0
table=()

# count WORD: the sum of what the stage says of it, as "5 passed" or "5 steps passed".
count() { grep -oE "[0-9]+ ([a-z]+ )?$1\\b" "$log" | awk '{ sum += $1 } END { print sum + 0 }'; }

# stage NAME COMMAND...
stage() {
  local name=$1 begin=$SECONDS status=0 passed failed skipped
  shift
  printf '\n=== %s\n' "$name"
  "$@" 2>&1 | tee "$log" || status=${PIPESTATUS[0]}
  passed=$(count passed) failed=$(count failed) skipped=$(count skipped)
  if ((status != 0 && failed == 0)); then failed=1; fi
  if ((passed + failed + skipped == 0)); then echo "FAILED: the stage says nothing of what it checked"; failed=1; fi
  table+=("$(printf '%-44s %6d %6d %7d %6d s' "$name" "$passed" "$failed" "$skipped" $((SECONDS - begin)))")
  total_passed=$((total_passed + passed)) total_failed=$((total_failed + failed)) total_skipped=$((total_skipped + skipped))
}

# app FOLDER: its own check.
app() {
  if [[ ! -d $1 ]]; then echo "SKIPPED: $1 is not in this checkout: 1 skipped"; return; fi
  if [[ ! -x $1/check.sh ]]; then echo "FAILED: $1/check.sh is missing, or is no program: 1 failed"; return 1; fi
  "$1/check.sh"
}

# The library as apps link it, in one run of pytest, whose tests share their bundles.
libraries() {
  local files=(tests/native/test_app_libraries.py tests/native/test_program_app.py tests/exporter/apps/test_files.py)
  "$PYTHON" -m pytest -n0 -v -rs -m long -p no:cacheprovider --durations=0 --durations-min=1 "${files[@]}"
}

stage "the app for Android" app android_demo
stage "the app for iOS" app ios_demo
stage "the library: CMake, Android, Swift, JNI, qemu" libraries

printf '\n%-44s %6s %6s %7s %8s\n' "stage" passed failed skipped time
printf '%s\n' "${table[@]}"
printf '%-44s %6d %6d %7d %6d s\n' "mobile-check" "$total_passed" "$total_failed" "$total_skipped" "$SECONDS"
((total_failed == 0))
