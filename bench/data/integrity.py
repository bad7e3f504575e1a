"""What the checks cost that are always on: our loader as it is, beside the same loader with the checks taken out.

    python bench/data/integrity.py [--rounds 9]

Passes alternate in pairs in one process; the figure is the median of the pairs' differences in CPU time. The loader
checks a picture's crc32 each time it is decoded, and a control step's record once; here its memory of checked records
is cleared before every pass, so that every pass pays for all of them. Before anything is timed, a flipped byte must
be found by the one and missed by the other.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peer_ours
from run import ROOT, machine
from source import Spec, make_source
from worker import BATCH, cpu_seconds

from hagane.catalog import Catalog, Columns, Loader
from hagane.catalog import pictures as picture_files
from hagane.terms import CorruptError

FLOOR = 0.05


class AnyCrc:
    """Equal to every checksum."""

    def __ne__(self, other: object) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@contextmanager
def unchecked() -> Iterator[None]:
    """The checks taken out: a checksum that costs nothing and fits everything, records taken as they are."""
    anything = AnyCrc()
    theirs, check = picture_files.zlib, Columns.check
    picture_files.zlib = SimpleNamespace(crc32=lambda data: anything)  # type: ignore[assignment]
    Columns.check = lambda *args: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        picture_files.zlib, Columns.check = theirs, check  # type: ignore[method-assign]


def one_pass(loader: Loader, first: int, steps: int) -> float:
    """CPU seconds of some steps, every record unchecked before them."""
    for columns in loader.datasets.values():
        columns._checked[:] = False
    began = cpu_seconds()
    for step in range(first, first + steps):
        loader.at(step)
    return cpu_seconds() - began


def prove(folder: Path) -> str:
    """Flip a byte of a copy of the cache: the checks must find it, and taking them out must let it pass.

    Raises:
        RuntimeError: the comparison would not be one.
    """
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(folder, Path(name) / "copy")
        catalog = peer_ours.open_catalog(Path(name) / "copy")
        loader = peer_ours.open_loader(catalog, "jpeg")
        file = next(f for f in columns_of(loader).folder.glob("pictures-*.bin") if ".index." not in f.name)
        data = bytearray(file.read_bytes())
        for header in re.finditer(b"\\xff\\xd8\\xff\\xe0..JFIF", data, re.DOTALL):
            data[header.start() + 15] ^= 0x10  # the print density: any decoder takes the picture all the same
        file.write_bytes(data)
        loader = peer_ours.open_loader(peer_ours.open_catalog(Path(name) / "copy"), "jpeg")
        with unchecked():
            loader.at(0)
        try:
            loader.at(0)
        except CorruptError as e:
            return str(e).splitlines()[0].removeprefix(f"{name}/copy/")
    raise RuntimeError("a flipped byte was not found: the loader does not check")


def columns_of(loader: Loader) -> Columns:
    """The one data set of the loader."""
    (columns,) = loader.datasets.values()
    return columns


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=75, help="of 32 samples, a pass")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench-data")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    spec = Spec(args.episodes, args.steps)
    folder = args.work / spec.key
    catalog = open_or_make(folder, spec)
    found = prove(folder / "ours")
    loader = peer_ours.open_loader(catalog, "jpeg")
    one_pass(loader, 0, args.batches)  # warm-up
    with_checks, without = [], []
    for number in range(args.rounds):
        first = number * args.batches
        for checked in (True, False) if number % 2 else (False, True):
            if checked:
                with_checks.append(one_pass(loader, first, args.batches))
            else:
                with unchecked():
                    without.append(one_pass(loader, first, args.batches))
    shares = sorted(1 - b / a for a, b in zip(with_checks, without, strict=True))
    result: dict[str, Any] = {
        "what": "share of loading CPU time that always-on checks take",
        "date": date.today().isoformat(),
        "machine": machine(),
        "load_average": os.getloadavg(),
        "samples_a_pass": args.batches * BATCH,
        "cpu_s_with": with_checks,
        "cpu_s_without": without,
        "share": {"median": statistics.median(shares), "min": shares[0], "max": shares[-1]},
        "found": found,
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    share = result["share"]
    held = "held" if share["median"] <= FLOOR else "MISSED"
    print(f"a flipped byte is found: {found}")
    print(
        f"always-on checks take {100 * share['median']:.1f}% of loading (pairs {100 * share['min']:.1f}% to "
        f"{100 * share['max']:.1f}%; floor {100 * FLOOR:.0f}%: {held}), load average {os.getloadavg()[0]:.1f}"
    )
    return 0 if held == "held" else 1


def open_or_make(folder: Path, spec: Spec) -> Catalog:
    """The catalog that the comparison uses too; made where it is absent."""
    source = make_source(folder / "source", spec)
    done = folder / "ours" / ".written.json"
    if not done.exists():
        shutil.rmtree(folder / "ours", ignore_errors=True)
        (folder / "ours").mkdir(parents=True)
        began = cpu_seconds()
        peer_ours.Ours("").write(source, folder / "ours")
        done.write_text(json.dumps({"cpu_s": cpu_seconds() - began, "wall_s": 0.0}), "utf-8")
    return peer_ours.open_catalog(folder / "ours")


if __name__ == "__main__":
    raise SystemExit(main())
