#!/bin/sh
# Four ranks are killed in the middle of a run; two ranks go on with it from its newest whole checkpoint.
#
# usage: show_resume.sh PYTHON [HOME]     HOME: a site with data (default demo-out, which `make demo` leaves)
set -eu
py=$1
home=${2:-demo-out}
[ -d "$home/catalog" ] || { echo "no data in $home: run \`make demo\` first, or $py -m hagane demo --quick" >&2; exit 1; }
# what PYTHON is called with: the module, so that an environment is enough
hagane() { "$py" -m hagane "$@"; }
run=$(mktemp -d "${TMPDIR:-/tmp}/hagane-show.XXXXXX")/four
trap 'rm -rf "$(dirname "$run")"' EXIT

echo "1. four ranks (dp_shard = 4, ep = 2), killed after a checkpoint"
hagane train --home "$home" --recipe examples/four_ranks.py:recipe --run "$run" > "$run.log" 2>&1 &
first=$!
while ! ls "$run"/checkpoints/step-*/manifest.json > /dev/null 2>&1; do
  kill -0 "$first" 2> /dev/null || { cat "$run.log" >&2; exit 1; }
  sleep 1
done
kill -9 $(pgrep -P "$first") "$first" 2> /dev/null || true
wait "$first" 2> /dev/null || true
echo "   left: $(ls "$run"/checkpoints | tr '\n' ' ')"

echo "2. two ranks go on"
hagane train --home "$home" --resume --nproc 2 --run "$run" 2>&1 | grep -v '^ *$' | tail -5

echo "3. losses around the change"
"$py" - "$run" <<'PYTHON'
import json, pathlib, sys

lines = [json.loads(x) for x in (pathlib.Path(sys.argv[1]) / "metrics.jsonl").read_text().splitlines()]
assert [x["step"] for x in lines] == list(range(1, 61)), "a step is missing or twice"
for x in lines[::6]:
    print(f"   step {x['step']:3d}  loss {x['loss']:.4f}")
PYTHON
