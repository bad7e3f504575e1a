"""Training data side by side: our loader, the decoder's ceiling, and the peers, in one run on one machine.

    make bench-data                 (or: python bench/data/run.py --help)

Every row is a process of its own in an environment of its own. The rows' passes alternate, in turning order, so that
a slow minute of the machine falls on all. The metric is samples a second of CPU time, threads and children included;
one sample is two 224 px pictures, a state and a chunk of 16 actions, in random order, 32 a batch. A row counts only
if its samples equal the source. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import table

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BATCH = 32
OURS, LEROBOT, PEERS = "", ".venv-lerobot", ".venv-peers"
"""Environments; ours is the one that runs this file."""
ROWS = {
    "hagane": (OURS, "peer_ours.py", ""),
    "hagane video": (OURS, "peer_ours.py", "video"),
    "lerobot av1": (LEROBOT, "peer_lerobot.py", "av1"),
    "lerobot h264": (LEROBOT, "peer_lerobot.py", "h264"),
    "lerobot image": (LEROBOT, "peer_lerobot.py", "image"),
    "lance": (PEERS, "peer_lance.py", ""),
    "webdataset": (PEERS, "peer_webdataset.py", ""),
    "webdataset pil": (PEERS, "peer_webdataset.py", "pil"),
    "hdf5": (PEERS, "peer_hdf5.py", ""),
}
CEILING = "ceiling"
LIMIT_S = 900.0
"""A row that gives no answer for so long is given up."""


class Wrong(Exception):
    """A row that cannot be measured, or gives wrong samples."""


@dataclass
class Row:
    """A process that waits for orders, and what it told."""

    name: str
    process: subprocess.Popen[str]
    told: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Give an order and wait for the answer.

        Raises:
            Wrong: the row says that it cannot, or has ended.
        """
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Wrong("the process has ended") from None
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer."""
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], LIMIT_S)[0]:
            self.process.kill()
            raise Wrong(f"no answer within {LIMIT_S} s")
        line = self.process.stdout.readline()
        told: dict[str, Any] = json.loads(line) if line else {"error": "the process has ended"}
        if "error" in told:
            raise Wrong(str(told["error"]).strip().splitlines()[0][:300])
        return told


def main() -> int:
    args = arguments()
    began, load = time.monotonic(), os.getloadavg()
    work = make_source(args)
    rows = [start(name, work, args.one_python) for name in args.rows]
    try:
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(prepare, rows))
        say_problems(rows)
        settings = decode_settings(rows)
        for row in rows:
            attempt(row, lambda row: open_and_check(row, settings))
        say_problems(rows)
        alive = [r for r in rows if not r.problem]
        passes = alternate(alive, settings, args)
        walls = with_workers([r for r in alive if not r.problem], args)
    finally:
        for row in rows:
            row.process.stdin.close()  # type: ignore[union-attr]
            row.process.wait()
    result = {
        "what": "samples a second of CPU time; 2 x 224 px pictures + state + 16-step chunk, random order, batch 32",
        "date": date.today().isoformat(),
        "machine": machine(),
        "load_average": {"before": load, "after": os.getloadavg()},
        "seconds": round(time.monotonic() - began, 1),
        "data": {k: getattr(args, k) for k in ("episodes", "steps", "seed", "quality", "picture_bytes")},
        "decode_settings": settings,
        "rows": {r.name: report(r, passes.get(r.name, []), walls.get(r.name, []), args) for r in rows},
        CEILING: summary(passes.get(CEILING, [])),
        "passes": passes,
        "passes_2_workers": walls,
    }
    result["ratios"] = table.ratios(result)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        print(f"bench-data: {args.out}")
    print(table.text(result))
    return 1 if any(r.problem for r in rows if r.name not in args.may_lack) else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--steps", type=int, default=100, help="control steps an episode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quality", type=int, default=92, help="of the JPEGs: their size decides what decoding costs")
    parser.add_argument("--rounds", type=int, default=5, help="alternations (3 at least for figures to publish)")
    parser.add_argument("--seconds", type=float, default=1.5, help="CPU seconds of one pass, about")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--may-lack", nargs="*", default=["hagane video"], help="rows that need not succeed")
    parser.add_argument("--jobs", type=int, default=2, help="formats written at the same time")
    parser.add_argument("--one-python", action="store_true", help="no peers' environments: all rows run in this one")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench-data", help="files are kept here")
    default = ROOT / "bench" / "results" / f"data-{date.today().isoformat()}.json"
    parser.add_argument("--out", type=Path, default=default)
    return parser.parse_args()


def make_source(args: argparse.Namespace) -> Path:
    """Make the content once; returns its folder, which every format shares."""
    spec = f"Spec({args.episodes}, {args.steps}, {args.seed}, {args.quality})"
    code = f"from pathlib import Path; from source import *; s = {spec}; w = Path({str(args.work)!r}) / s.key"
    code += "; made = make_source(w / 'source', s); print(w); print(made.offsets[-1] / len(made) / 2)"
    say("making the source")
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench-data: the source cannot be made:\n{done.stderr}")
    folder, size = done.stdout.split()
    args.picture_bytes = round(float(size))
    say(f"{args.episodes * args.steps} samples, a picture has {args.picture_bytes / 1000:.1f} KB: {folder}")
    return Path(folder)


def environment() -> dict[str, str]:
    """One thread for numerical libraries, our code from this tree, nothing from any hub."""
    one = {f"{n}_NUM_THREADS": "1" for n in ("OMP", "OPENBLAS", "MKL")}
    paths = os.pathsep.join([str(ROOT / "src"), str(HERE)])
    return {**os.environ, **one, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def start(name: str, work: Path, one_python: bool) -> Row:
    """Start a row's process."""
    where, script, mode = ROWS[name]
    python = Path(sys.executable) if one_python or where == OURS else ROOT / where / "bin" / "python"
    command = [python, HERE / script, "--work", work, *(["--mode", mode] if mode else [])]
    if not python.exists():
        command = [sys.executable, "-c", f"""print('{{"error": "there is no environment {where}"}}')"""]
    pipe = subprocess.PIPE
    with (work / f"log-{name.replace(' ', '-')}.txt").open("w") as log:
        return Row(name, subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment()))


def attempt(row: Row, what: Any) -> None:
    """Do something with a row that has no problem yet; a problem is kept, and the other rows go on."""
    if not row.problem:
        try:
            what(row)
        except Wrong as e:
            row.problem = str(e)


def prepare(row: Row) -> None:
    def go(row: Row) -> None:
        row.told["versions"] = row.answer()["versions"]
        row.told["written"] = row.ask("write")
        told = row.told["written"]
        say(f"{row.name}: {told['bytes'] / 1e6:.1f} MB, written in {told['cpu_s']:.1f} CPU s")

    attempt(row, go)


def open_and_check(row: Row, settings: dict[str, Any]) -> None:
    row.told["facts"] = row.ask("open", decode=settings)
    row.told["check"] = row.ask("check", batches=4)
    told = row.told["check"]
    say(f"{row.name}: {told['samples']} samples equal the source, pictures {told['worst_psnr_db']} dB at least")


def decode_settings(rows: list[Row]) -> dict[str, Any]:
    """How our loader calls the decoder: the ceiling and the formats without a decoder use the same."""
    settings: dict[str, Any] = {}

    def listen(row: Row) -> None:
        row.ask("open", decode={})
        heard = row.ask("call", name="decode_settings")
        if not heard["pictures"]:
            say("our loader calls no JPEG decoder: the ceiling takes the decoder's own settings")
        settings.update(heard["settings"])

    for row in rows:
        if row.name == "hagane":
            attempt(row, listen)
    return settings


def alternate(rows: list[Row], settings: dict[str, Any], args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Timed passes of all rows in turn, `rounds` times; every second round backwards."""
    passes: dict[str, list[dict[str, Any]]] = {}
    counts: dict[str, int] = {}

    def one(row: Row, name: str, batches: int, seed: int) -> dict[str, Any]:
        if name == CEILING:
            return row.ask("call", name="ceiling", batches=batches, seed=seed, decode=settings)
        return row.ask("time", batches=batches)

    turns = [(r, r.name) for r in rows]
    turns += [(r, CEILING) for r in rows if r.name == "hagane"]
    turns.sort(key=lambda t: t[1] not in (CEILING, "hagane"))  # the ceiling beside what it judges

    def warm_up(row: Row, name: str) -> None:
        """The page cache, imports at first use, and how long a pass must be."""
        told = one(row, name, 6, 0)
        counts[name] = max(4, min(400, round(args.seconds * told["samples"] / told["cpu_s"] / BATCH)))
        if row.name == "hagane video":  # an episode is decoded whole, so only whole epochs are the mean of all
            epoch = -(-row.told["facts"]["epoch_samples"] // BATCH)
            counts[name] = epoch * -(-counts[name] // epoch)
        row.told.setdefault("batches_a_pass", counts[name])

    def timed(row: Row, name: str, number: int) -> None:
        passes.setdefault(name, []).append(one(row, name, counts[name], number + 1))

    for row, name in turns:
        attempt(row, partial(warm_up, name=name))
    for number in range(args.rounds):
        say(f"round {number + 1} of {args.rounds}, load average {os.getloadavg()[0]:.1f}")
        for row, name in turns if number % 2 == 0 else reversed(turns):
            attempt(row, partial(timed, name=name, number=number))
    return {name: told for name, told in passes.items() if len(told) == args.rounds}


def with_workers(rows: list[Row], args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Wall time with two workers, row after row; a row that has none says so and keeps its other figures."""
    passes: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        say(f"two workers: {row.name}")
        try:
            told = row.ask("time_workers", batches=row.told["batches_a_pass"], workers=2, passes=min(args.rounds, 3))
            passes[row.name] = told["passes"]
        except Wrong as e:
            row.told["no_workers"] = str(e)
    return passes


def report(row: Row, passes: list[Any], walls: list[Any], args: argparse.Namespace) -> dict[str, Any]:
    """All that is known of a row."""
    told = {**row.told, "problem": row.problem} if row.problem else dict(row.told)
    if passes:
        size = told["facts"].get("loader_bytes", told["written"]["bytes"]) / (args.episodes * args.steps)
        told |= {"samples_per_cpu_s": summary(passes), "bytes_per_sample": round(size)}
        told["stored_mb_per_cpu_s"] = round(size * told["samples_per_cpu_s"]["median"] / 1e6, 1)
    if walls:
        told["samples_per_s_2_workers"] = summary(walls, "wall_s")
    return told


def summary(passes: list[dict[str, Any]], per: str = "cpu_s") -> dict[str, float]:
    """Median, least and most samples a second over passes."""
    rates = sorted(p["samples"] / p[per] for p in passes)
    if not rates:
        return {}
    return {k: round(v, 1) for k, v in (("median", statistics.median(rates)), ("min", rates[0]), ("max", rates[-1]))}


def machine() -> dict[str, Any]:
    """What this ran on."""
    cpu = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    flags = {"cpu": cpu, "cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    return {**flags, "architecture": platform.machine()}


def say_problems(rows: list[Row]) -> None:
    for row in rows:
        if row.problem and "said" not in row.told:
            row.told["said"] = True
            say(f"{row.name}: NOT measured: {row.problem}")


def say(line: str) -> None:
    print(f"bench-data: {line}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
