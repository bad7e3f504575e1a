"""What rights cost: every part in one run on one machine, one table, one JSON file.

    python -m bench.rights [--only PART ...] [--skip PART ...] [--steps 200] [--pairs 8] [--tiny] [--out FILE.json]

The exit code is 1 when a figure misses what was asked of it beyond its interval, or a part could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.rights import keys, ledger, loading, permit, records, start, training
from bench.rights.measured import Figure, as_table, machine

from hagane.terms import HaganeError

Part = Callable[[Path], list[Figure]]
HEAD = "| what | asked | measured | | how |\n|---|---|---|---|---|"


def parts_of(o: argparse.Namespace) -> dict[str, Part]:
    """Every part by name, in its size."""
    if o.tiny:
        return {
            "start": lambda _: start.measure(2),
            "permit": lambda at: permit.measure(at, 2, 5),
            "keys": lambda at: keys.measure(at, 5, 2),
            "records": lambda _: records.measure((300,), 2, 1 << 16),
            "ledger": lambda at: ledger.measure(at, 2000, 2),
            "loading": lambda at: loading.measure(at, 2, 2, 2),
            "training": lambda at: training.measure(at, 6, 2, 2, 8),
        }
    return {
        "start": lambda _: start.measure(),
        "permit": permit.measure,
        "keys": keys.measure,
        "records": lambda _: records.measure(),
        "ledger": ledger.measure,
        "loading": loading.measure,
        "training": lambda at: training.measure(at, o.steps, o.pairs),
    }


def run(parts: dict[str, Part], folder: Path) -> dict[str, object]:
    """Measure part after part, and print each row when it is there; a part that fails is told and the others go on."""
    figures: list[Figure] = []
    failed: dict[str, str] = {}
    seconds: dict[str, float] = {}
    print(HEAD, flush=True)
    for name, part in parts.items():
        begin = time.perf_counter()
        try:
            found = part(folder / name)
        except HaganeError as e:
            failed[name] = str(e)
            print(f"bench-rights: {name}: {e}", file=sys.stderr)
            continue
        seconds[name] = round(time.perf_counter() - begin, 1)
        figures += found
        print("\n".join(f.row() for f in found), flush=True)
    return {**machine(), "seconds": seconds, "failed": failed, "figures": [as_table(f) for f in figures]}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.rights", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], help="these parts")
    parser.add_argument("--skip", nargs="+", default=[], help="not these")
    parser.add_argument("--steps", type=int, default=200, help="of a training run")
    parser.add_argument("--pairs", type=int, default=8, help="of training runs")
    parser.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    parser.add_argument("--out", type=Path, help="JSON file; without it nothing is written")
    o = parser.parse_args(argv)
    parts = parts_of(o)
    if unknown := {*o.only, *o.skip} - set(parts):
        parser.error(f"no parts {sorted(unknown)}; there are {', '.join(parts)}")
    if o.steps <= training.SHORT + 1 or o.pairs < 2:
        parser.error(
            f"--steps {o.steps} --pairs {o.pairs}: more than {training.SHORT + 1} steps, and two pairs at least"
        )
    chosen = {n: p for n, p in parts.items() if (not o.only or n in o.only) and n not in o.skip}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="hagane-rights-") as folder:
        found = run(chosen, Path(folder))
    print(f"\n{found['date']}, {found['cpu']}, {found['cores']} cores, load {found['load']:.1f} at the end")
    if o.out:
        o.out.parent.mkdir(parents=True, exist_ok=True)
        o.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    missed = [f for f in found["figures"] if f["verdict"] == "misses" or f["measured"] is None]  # type: ignore[attr-defined]
    return 1 if missed or found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
