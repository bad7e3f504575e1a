"""Faults, counted: flipped bytes, SIGKILL while recording and while converting, resume on other ranks and workers.

    OMP_NUM_THREADS=1 python bench/data/faults.py [--flips 1000] [--kills 50] [--steps 1000] [--out FILE.json]

Prints a line a figure, and writes them as JSON where --out says. Exits 1 when one is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from run import machine
from tests.catalog_fixture import ARM, ROAD, Home, make_home
from tests.catalog_fixture import episodes as plain_episodes
from tests.intake_cases import LINE
from tests.pictures_fixture import EYES, episodes
from tests.test_catalog_workers import logs

from hagane.catalog import Ahead, Catalog, Loader, Mixture
from hagane.intake.lerobot import read as read_lerobot
from hagane.intake.lerobot_rows import embodiment_features
from hagane.intake.lerobot_write import LeRobotWriter
from hagane.terms import Batch, HaganeError

ROOT = Path(__file__).parents[2]
MODES = ("jpeg", "video")


def flips(count: int, folder: Path) -> dict[str, Any]:
    """One byte flipped at a time in every kind of file; each must be found by the one who reads it."""
    home = make_home(folder)
    catalog = home.catalog()
    catalog.add("eyes-demo", EYES, home.contract(EYES), episodes(24))
    for mode in MODES:
        catalog.columns("eyes-demo", "anchor", mode)  # type: ignore[arg-type]
    root = folder / "catalog"
    kinds: dict[str, list[Path]] = {"Parquet": [], "video": [], "cache": [], "index": []}
    for path in sorted(p for p in root.rglob("*") if p.is_file() and ".locks" not in p.parts):
        kinds[kind_of(path)].append(path)
    rng, found, named = random.Random(0), Counter[str](), Counter[str]()
    tried = Counter[str]()
    missed = []
    for n in range(count):
        kind = list(kinds)[n % len(kinds)]
        path = rng.choice(kinds[kind])
        good = path.read_bytes()
        at = rng.randrange(len(good))
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :])
        tried[kind] += 1
        said = reading(home)
        path.write_bytes(good)
        if said and path.name.removesuffix(".sig") in said:
            found[kind] += 1
            named[kind] += "episode" in said
        else:
            missed.append(f"{path.relative_to(root)} byte {at}: {said[:80]!r}")
    for line in missed[:10]:
        print("  missed:", line)
    clean = reading(home)
    return {
        "tried": dict(tried),
        "found": dict(found),
        "named an episode": dict(named),
        "false alarms": int(bool(clean)),
        "ok": not missed and not clean,
    }


def kind_of(path: Path) -> str:
    """Parquet and the other files of the canonical set; the cache's data, its videos, and its indexes."""
    text = str(path)
    if path.suffix == ".parquet":
        return "Parquet"
    if "-video/" in text and path.name.startswith("pictures") and "index" not in path.name:
        return "video"
    return "cache" if path.suffix == ".bin" and "index" not in path.name else "index"


def reading(home: Home) -> str:
    """Read all there is, as verify, a run and a viewer do; returns what was said, "" when all is well."""
    said = []
    try:
        catalog = home.catalog()
        list(catalog.episodes("eyes-demo", "view"))
        for mode in MODES:
            catalog.columns("eyes-demo", "anchor", mode).verify()  # type: ignore[arg-type]
        catalog.verify("eyes-demo")
    except HaganeError as e:
        said.append(str(e))
    return "\n".join(said)


RECORDING = """
import sys
from pathlib import Path
from hagane.intake.lerobot_grid import align, instruction
from hagane.intake.lerobot_rows import embodiment_features, fps_of, grid_rows
from hagane.intake.lerobot_write import LeRobotWriter
from tests.catalog_fixture import ARM, episode
writer = LeRobotWriter(Path(sys.argv[1]), embodiment_features(ARM), fps_of(ARM))
print("ready", writer.episodes, flush=True)
for n in range(writer.episodes, 100000):
    made = episode(ARM, n)
    writer.add_episode(grid_rows(align(made, ARM), ARM), instruction(made, ARM))
    print("closed", n + 1, flush=True)
"""


def recording_kills(count: int, folder: Path) -> dict[str, Any]:
    """A recorder that is killed at a random moment, each time going on with what is there."""
    rng, lost, closed = random.Random(1), 0, 0
    target = folder / "recorded"
    for _ in range(count):
        child = spawn(RECORDING, target)
        wait_for(child, "ready")
        time.sleep(rng.uniform(0.0, 0.6))
        said = kill(child)
        told = max(
            [closed, *(int(line.split()[1]) for line in said if line.startswith("closed") and line.endswith("\n"))]
        )
        kept = LeRobotWriter(target, embodiment_features(ARM), 20).episodes
        lost += kept < told  # an episode that was told to be closed is gone
        closed = kept
    writer = LeRobotWriter(target, embodiment_features(ARM), 20)
    writer.finish()
    whole = sum(1 for _ in read_lerobot(target, ARM))
    return {
        "kills": count,
        "closed episodes lost": lost,
        "episodes": closed,
        "readable": whole,
        "ok": not lost and whole == closed,
    }


CONVERTING = """
import sys
from pathlib import Path
from hagane.catalog import Workers
from tests.catalog_fixture import make_home
from tests.intake_cases import LINE
home = make_home(Path(sys.argv[1]))
signed = home.contract(LINE, "line-demo")
catalog = home.catalog()
print("ready", flush=True)
catalog.add_logs("line-demo", LINE, signed, Path(sys.argv[2]), workers=Workers(int(sys.argv[3])))
print("done", flush=True)
"""


def conversion_kills(count: int, folder: Path) -> dict[str, Any]:
    """A conversion killed at a random moment: the catalog is as it was or complete, and a second run completes it."""
    source = logs(folder / "logs", 6)
    clean = make_home(folder / "clean")
    want = clean.catalog().add_logs("line-demo", LINE, clean.contract(LINE, "line-demo"), source).digest
    began = time.monotonic()
    whole = spawn(CONVERTING, folder / "timed", source, 1)
    wait_for(whole, "ready")
    began = time.monotonic()
    whole.communicate()
    seconds = time.monotonic() - began
    rng, bad, before, after = random.Random(2), 0, 0, 0
    for n in range(count):
        home = make_home(folder / f"killed-{n:03d}")
        child = spawn(CONVERTING, home.folder, source, 1 + n % 2)
        wait_for(child, "ready")
        time.sleep(rng.uniform(0.0, seconds * (1 + 1.5 * (n % 2))))
        kill(child)
        names = [r.name for r in home.catalog().ls()]
        before, after = before + (names == []), after + (names == ["line-demo"])
        if names:
            home.catalog().verify("line-demo")
        digest = home.catalog().add_logs("line-demo", LINE, home.contract(LINE, "line-demo"), source).digest
        good = digest == want and home.catalog().verify("line-demo") > 5 and home.catalog().unfinished() == ()
        bad += not good
        shutil.rmtree(home.folder)
    return {
        "kills": count,
        "found absent": before,
        "found complete": after,
        "wrong after a second run": bad,
        "ok": not bad,
    }


def spawn(code: str, *args: object) -> subprocess.Popen[str]:
    """A Python process that runs `code` and can be killed with its children."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def wait_for(child: subprocess.Popen[str], word: str) -> None:
    """Read its output up to a line that begins with `word`."""
    assert child.stdout is not None
    while not child.stdout.readline().startswith(word):
        assert child.poll() is None, "it ended before it began"


def kill(child: subprocess.Popen[str]) -> list[str]:
    """SIGKILL a process and those it started; returns the rest of what it said."""
    os.killpg(child.pid, signal.SIGKILL)
    assert child.stdout is not None
    said = child.stdout.readlines()
    child.wait()
    return said


def exact_resume(steps: int, folder: Path) -> dict[str, Any]:
    """Every global batch by 1, 2 and 8 ranks, with 1, 2 and 8 workers, entered anew at random steps."""
    home = make_home(folder)
    catalog = home.catalog()
    catalog.add("eyes-demo", EYES, home.contract(EYES), episodes(30))
    catalog.add("road-demo", ROAD, home.contract(ROAD), plain_episodes(ROAD, 40))
    rng, rows = random.Random(3), []
    for mode in MODES:
        want = digests(catalog, mode, steps, 1, 0, [])
        for ranks in (1, 2, 8):
            for workers in (1, 2, 8):
                restarts = sorted(rng.sample(range(1, steps), 5))
                got = digests(make_home(folder).catalog(), mode, steps, ranks, workers, restarts)
                rows.append(sum(a != b for a, b in zip(want, got, strict=True)))
    return {"steps": steps, "runs": len(rows), "batches that differ": sum(rows), "ok": not sum(rows)}


def digests(catalog: Catalog, mode: str, steps: int, ranks: int, workers: int, restarts: list[int]) -> list[bytes]:
    """sha256 of every global batch, put together from its ranks' shares."""
    out: list[bytes] = []
    makers: list[Ahead] = []
    for step in range(steps):
        if step == 0 or step in restarts:
            # killed: nothing is kept but the step
            for maker in makers:
                maker.close()
            names = ["eyes-demo", "road-demo"]
            loader = Loader(catalog, names, Mixture(seed=5), purpose="anchor", samples_per_step=24, pictures=mode)  # type: ignore[arg-type]
            makers = [Ahead(share(loader, r, ranks), workers, last=steps) for r in range(ranks)]
        out.append(digest_of([m.at(step) for m in makers]))
    for maker in makers:
        maker.close()
    return out


def share(loader: Loader, rank: int, ranks: int) -> Callable[[int], Batch]:
    """One rank's view of a loader."""
    return lambda step: loader.at(step, rank, ranks)


def digest_of(shares: list[Batch]) -> bytes:
    """sha256 over the whole batch, whatever it was divided into."""
    h, ranks = hashlib.sha256(), len(shares)
    for parts in zip(*(s.parts for s in shares), strict=True):
        arrays: list[list[np.ndarray]] = []
        for p in parts:
            windows = [*p.observation.channels.values(), *p.next.values()]
            arrays.append([p.sample_ids_N, p.observation.time_ns, p.actions_NHA, p.action_valid_NH])
            arrays[-1] += [a for w in windows for a in (w.values, w.valid, w.age_s)]
        for pieces in zip(*arrays, strict=True):
            total = sum(len(x) for x in pieces)
            whole = np.empty((total, *pieces[0].shape[1:]), pieces[0].dtype)
            for r, piece in enumerate(pieces):
                whole[r::ranks] = piece
            h.update(whole.tobytes())
    return h.digest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    jobs: dict[str, Callable[[Path], dict[str, Any]]] = {
        "flipped bytes": lambda d: flips(o.flips, d),
        "killed while recording": lambda d: recording_kills(o.kills, d),
        "killed while converting": lambda d: conversion_kills(o.kills, d),
        "resume on other ranks and workers": lambda d: exact_resume(o.steps, d),
    }
    rows = {}
    for name, job in jobs.items():
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = job(Path(folder)) | {"seconds": round(time.monotonic() - began, 1)}
        print(f"{name}: {json.dumps(rows[name])}", flush=True)
    if o.out:
        told = {"date": str(date.today()), "machine": machine(), "rows": rows}
        o.out.write_text(json.dumps(told, indent=1) + "\n")
    return 0 if all(r["ok"] for r in rows.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
