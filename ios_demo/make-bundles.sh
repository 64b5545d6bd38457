#!/bin/sh
# Makes what the tests of LZWKit compare with: bundles of the demo model, and what `tinyqmoe` says of them.
# usage: make-bundles.sh FOLDER
set -eu
out=$1
demo=$(cd "$(dirname "$0")/../exporter/demo/model" && pwd)
tinyqmoe=${TINYQMOE:-tinyqmoe}

# The demo model was trained for rounded levels.
for scheme in int8 "ternary --calibration none"; do
  name=$([ "$scheme" = int8 ] && echo demo || echo ternary)
  "$tinyqmoe" export "$demo" "$out/$name" --scheme $scheme --context 128 --target both --allow-loss >"$out/$name.log" 2>&1 ||
    { cat "$out/$name.log"; exit 1; }
  "$tinyqmoe" expand "$out/$name" "$out/$name.mlpackage" >/dev/null
done
"$tinyqmoe" run "$out/demo" --backend native --chat --prompt "What is the kite's name?" --max-new-tokens 24 \
  --json "$out/run.json" >/dev/null
"$tinyqmoe" parity "$out/demo" --backend native --json "$out/parity.json" >/dev/null
