"""What a petabyte of members' logs needs: rates of every stage of conversion on one core, and what follows from them.

    python bench/data/scale.py [--scale 1.0] [--out FILE.json]     (prints the tables of docs/data-scale.md)

Logs are made in the formats that machines write, then read, checked, stored and cached by the same code as
`hagane intake`, in this process alone. Rates are bytes of the log a second of CPU time, median of three. The table for
a petabyte is arithmetic on these rates: it assumes that cores add up (episodes are independent), and nothing more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import peer_ours
from peer_hdf5 import Hdf5
from run import ROOT, machine
from source import CAMERAS, Spec, make_source
from worker import cpu_seconds, folder_bytes

from hagane.catalog import Catalog
from hagane.intake import read_logs
from hagane.intake.can_write import encode_can
from hagane.intake.historian_write import write_historian
from hagane.intake.lerobot_sketch import sketch_pixels, sketch_rows
from hagane.intake.picture import encode_jpeg
from hagane.intake.recorder import McapRecorder
from hagane.seal import Site, TrustStore, generate_key, load_contract, public_of, sign_contract
from hagane.terms import APPLIED, Contract, Embodiment, Episode, Stream, dump_toml, load_toml

WORLDS = ROOT / "src" / "hagane" / "worlds"
PB, SHARES = 1e15, {"HDF5, JPEG cameras": 0.95, "CAN, candump": 0.02, "historian, CSV": 0.02, "MCAP, JSON": 0.01}
"""A petabyte, and the mix of the last line: an assumption, cameras being most of every log that has them."""
CORES = (64, 1024)


@dataclass(frozen=True)
class Kind:
    """Logs of one format."""

    machine: Embodiment
    write: Callable[[Path], Path]
    """Write into a folder; gives the log."""


@dataclass(frozen=True)
class Rates:
    """Measured on one kind of log; seconds of CPU a byte of the log, bytes out a byte in."""

    mb: float
    read_mb_s: float
    """Read and checked."""
    store_mb_s: float
    """Packed, aligned, statistics, canonical set and training cache written."""
    canonical: float
    cache: float

    @property
    def core_hours_a_pb(self) -> float:
        """Core-hours for a petabyte."""
        return PB / 1e6 * (1 / self.read_mb_s + 1 / self.store_mb_s) / 3600


def noise(embodiment: Embodiment, seed: int, steps: int) -> Episode:
    """Random readings within their ranges: nothing that compresses."""
    rng = np.random.default_rng(seed)
    times_ns = embodiment.step_ns * np.arange(steps, dtype=np.int64)
    streams = {}
    for c in (*embodiment.observe, *embodiment.act):
        if c.kind == "text":
            continue
        low, high = (np.array(getattr(c, n) or default) for n, default in (("low", (-1.0,)), ("high", (1.0,))))
        values = rng.uniform(low, high, (steps, *c.shape)).astype(np.float32)
        valid = rng.random((steps, c.places)) < 0.7 if c.kind == "set" else np.ones(steps, bool)
        streams[c.name] = Stream(times_ns, values, valid, c.unit)
        if c in embodiment.act:
            streams[c.name + APPLIED] = streams[c.name]
    return Episode(f"{embodiment.name}/{seed:06d}", embodiment.name, streams, "go on")


def kinds(scale: float) -> dict[str, Kind]:
    """The logs: sizes for `scale` 1 give each about a second or more to do."""
    car, line = (load_toml(WORLDS / f"{n}.toml", Embodiment) for n in ("road", "mill"))

    def many(count: float) -> range:
        return range(max(2, round(count * scale)))

    def can(folder: Path) -> Path:
        return encode_can([noise(car, k, 160) for k in many(120)], car, folder)[0]

    def csv(folder: Path) -> Path:
        return write_historian([noise(line, k, 2000) for k in many(40)], line, folder / "line.csv")

    def mcap(folder: Path) -> Path:
        for k in many(20):
            with McapRecorder(folder / f"run-{k:03d}.mcap", line, wait=True) as recorder:
                for name, stream in noise(line, k, 1000).streams.items():
                    for t, values in zip(stream.times_ns.tolist(), stream.values, strict=True):
                        recorder.write(name, t, values)
        return folder

    def cameras(folder: Path) -> Path:
        source = make_source(folder.parent / "source", Spec(len(many(10)), 100))
        Hdf5("").write(source, folder)
        return folder

    arm = peer_ours.ARM
    sources = {**{c: f"observations/images/{c}" for c in CAMERAS}, "state": "observations/qpos"}
    seen = tuple(replace(c, source=(sources[c.name],)) for c in arm.observe)
    return {
        "CAN, candump": Kind(car, can),
        "historian, CSV": Kind(line, csv),
        "MCAP, JSON": Kind(line, mcap),
        "HDF5, JPEG cameras": Kind(replace(arm, observe=seen), cameras),
    }


def measure(kind: Kind, folder: Path, times: int) -> Rates:
    """Read, and read and store, `times` times each."""
    logs = folder / "logs"
    logs.mkdir(parents=True)
    log = kind.write(logs)
    size = folder_bytes(log) if log.is_dir() else log.stat().st_size
    drain(read_logs(log, kind.machine, task="go on"))  # imports and page cache
    read = statistics.median(spent(lambda: drain(read_logs(log, kind.machine, task="go on"))) for _ in range(times))
    stores, out = [], {}
    for k in range(times):
        catalog, signed = site(folder / f"site-{k}", kind.machine)
        episodes = list(read_logs(log, kind.machine, task="go on"))
        stores.append(spent(lambda c=catalog, s=signed, e=episodes: c.add("logs", kind.machine, s, e)))
        columns = catalog.columns("logs", "anchor")
        out = {"canonical": folder_bytes(catalog.root / "sets") / size, "cache": folder_bytes(columns.folder) / size}
    return Rates(size / 1e6, size / 1e6 / read, size / 1e6 / statistics.median(stores), **out)


def site(folder: Path, embodiment: Embodiment) -> tuple[Catalog, Any]:
    """An empty catalog and a contract for the machine's logs."""
    folder.mkdir()
    key = generate_key(folder / "key.pem")
    trust = TrustStore(folder / "trust")
    trust.add(embodiment.owner, public_of(key))
    terms = Contract(
        embodiment.owner,
        ("logs",),
        ("JP",),
        ("plant-7",),
        ("anchor",),
        date(2099, 12, 31),
        date(2026, 1, 1),
        1,
        protection="process",
    )
    (folder / "contract.toml").write_text(dump_toml(terms), "utf-8")
    sign_contract(folder / "contract.toml", key)
    catalog = Catalog.open(folder / "catalog", Site("plant-7", "JP", "consortium"), trust)
    return catalog, load_contract(folder / "contract.toml", trust)


def drain(episodes: Iterator[Episode]) -> None:
    """Read to the end, keeping nothing."""
    if not sum(1 for _ in episodes):
        raise RuntimeError("the log holds no episode")


def spent(work: Callable[[], Any]) -> float:
    """CPU seconds, threads and ended children included."""
    began = cpu_seconds()
    work()
    return cpu_seconds() - began


def parts(folder: Path, times: int) -> dict[str, float]:
    """MB a CPU second of the pieces that stages are made of; of pictures, MB of plain pixels."""
    source = make_source(folder / "source", Spec(2, 100))
    pictures = np.stack([source.picture(row, 0) for row in range(100)])
    block = np.random.default_rng(0).integers(0, 256, 1 << 26, np.uint8).tobytes()
    rows = np.random.default_rng(1).normal(size=(200_000, 14)).astype(np.float32)
    works: dict[str, tuple[float, Callable[[], Any]]] = {
        "sha256": (len(block), lambda: hashlib.sha256(block).digest()),
        "crc32": (len(block), lambda: zlib.crc32(block)),
        "JPEG encode (plain pixels)": (pictures.nbytes, lambda: [encode_jpeg(p) for p in pictures]),
        "statistics of numbers (float32)": (rows.nbytes, lambda: sketch_rows(rows)),
        "statistics of pixels": (pictures.nbytes, lambda: sketch_pixels(pictures)),
    }
    return {
        name: round(size / 1e6 / statistics.median(spent(work) for _ in range(times)), 1)
        for name, (size, work) in works.items()
    }


def mixed(measured: dict[str, Rates]) -> Rates:
    """The mix of `SHARES`: times and bytes add up by share."""

    def harmonic(name: str) -> float:
        return 1 / sum(share / getattr(measured[k], name) for k, share in SHARES.items())

    def mean(name: str) -> float:
        return float(sum(share * getattr(measured[k], name) for k, share in SHARES.items()))

    total = sum(r.mb for r in measured.values())
    return Rates(total, harmonic("read_mb_s"), harmonic("store_mb_s"), mean("canonical"), mean("cache"))


def tables(measured: dict[str, Rates], pieces: dict[str, float]) -> str:
    """Markdown: what was measured, and what a petabyte needs."""
    mix = "the mix: " + ", ".join(f"{100 * v:.0f}% {k.split(',')[0]}" for k, v in SHARES.items())
    lines = ["| log | read + check, MB/s a core | store + cache, MB/s a core | canonical, bytes | cache, bytes |"]
    lines += ["|---|---|---|---|---|"]
    for name, r in measured.items():
        lines.append(f"| {name} | {r.read_mb_s:.1f} | {r.store_mb_s:.1f} | {r.canonical:.2f} x | {r.cache:.2f} x |")
    lines += ["", "| piece | MB/s a core |", "|---|---|", *(f"| {k} | {v:,.0f} |" for k, v in pieces.items()), ""]
    heads = ["1 PB of", "core-hours", *(f"days on {c:,} cores" for c in CORES)]
    heads += ["disk beside the vault, PB", f"network of {CORES[-1]:,} cores, Gbit/s"]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, r in (*measured.items(), (mix, mixed(measured))):
        hours = r.core_hours_a_pb
        days = [hours / cores / 24 for cores in CORES]
        moved = (1 + r.canonical + r.cache) * PB * 8 / (days[-1] * 86400) / 1e9
        cells = [name, f"{hours:,.0f}", *(f"{d:,.1f}" for d in days), f"{r.canonical + r.cache:.2f}", f"{moved:,.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the logs")
    parser.add_argument("--times", type=int, default=3, help="repetitions; the median counts")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measured = {}
        for number, (what, kind) in enumerate(kinds(args.scale).items()):
            measured[what] = measure(kind, Path(name) / str(number), args.times)
            print(f"scale: {what}, {measured[what].mb:.1f} MB measured", flush=True)
        pieces = parts(Path(name) / "parts", args.times)
    about = machine()
    print(f"\n{date.today().isoformat()}, {about['cpu']}, load average {os.getloadavg()[0]:.1f}\n")
    print(tables(measured, pieces))
    if args.out:
        told = {"date": date.today().isoformat(), "machine": about, "load_average": os.getloadavg(), "pieces": pieces}
        told |= {"logs": {k: {**r.__dict__, "core_hours_a_pb": r.core_hours_a_pb} for k, r in measured.items()}}
        args.out.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
