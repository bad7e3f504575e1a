"""Sealed loading beside plain: the same batches of the same data set, in turns, in one process; CPU seconds.

Cases: two JPEGs of 224 x 224, state and a chunk of 16 steps (the sample of bench/data), and the same without pictures;
each on the first pass over the data, where sealed records are decrypted for the first time, and on later ones. A pair
is a run of each form over the same steps, the order of the two turning from pair to pair; the interval is that of
Student's t on the logarithms of the ratios. Before anything is timed, batches are compared to the bit.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
from peer_ours import ARM, episodes
from source import Spec, make_source

from hagane.catalog import Catalog, Loader, Mixture
from hagane.catalog.sealing import CatalogKeys, seal_cache, seal_set
from hagane.seal import Keyring, SignedContract, Site, TrustStore, generate_key, load_contract, public_of, sign_contract
from hagane.terms import Batch, Contract, Embodiment, Episode, dump_toml

BATCH = 32
SITE = Site("plant-7", "JP", "consortium")
STATES = replace(ARM, name="bench-states", observe=tuple(c for c in ARM.observe if c.kind != "image"))
_T95 = {10: 2.262, 12: 2.201, 16: 2.131, 20: 2.093, 24: 2.069, 30: 2.045, 40: 2.023}
"""Student's t, 97.5%, by number of pairs (one degree of freedom less)."""


@dataclass(frozen=True)
class Forms:
    """One data set in both forms."""

    name: str
    plain: Callable[[], Loader]
    sealed: Callable[[], Loader]


def signed_by(folder: Path, machine: Embodiment, trust: TrustStore) -> SignedContract:
    """A contract of the machine's owner, made for the occasion."""
    key = generate_key(folder / f"{machine.name}.pem")
    if machine.owner not in trust.owners():
        trust.add(machine.owner, public_of(key))
    path = folder / f"{machine.name}.toml"
    terms = (
        machine.owner,
        (machine.name,),
        ("JP",),
        ("plant-7",),
        ("anchor",),
        date(2099, 12, 31),
        date(2026, 1, 1),
        1,
    )
    path.write_text(dump_toml(Contract(*terms, protection="process")), "utf-8")
    sign_contract(path, key)
    return load_contract(path, trust)


def make_forms(folder: Path, machine: Embodiment, made: Iterator[Episode]) -> Forms:
    """Bring episodes in, and seal the set and its cache into another catalog."""
    folder.mkdir()
    trust, keyring, name = TrustStore(folder / "trust"), Keyring(folder / "keys"), machine.name
    signed = signed_by(folder, machine, trust)
    plain = Catalog.open(folder / "plain", SITE, trust)
    plain.add(name, machine, signed, made)
    seal_set(folder / "plain/sets" / name, folder / "sealed/sets" / name, keyring, name, signed, SITE.name)
    for cache in (folder / "plain/cache").iterdir():
        seal_cache(cache, folder / "sealed/cache" / cache.name, keyring, name, signed)
    keys = CatalogKeys(folder / "sealed", keyring)
    sealed = Catalog.open(folder / "sealed", SITE, trust, keys=keys)

    def opened(catalog: Catalog) -> Loader:
        return Loader(catalog, [name], Mixture(seed=0), purpose="anchor", samples_per_step=BATCH, next_pictures=False)

    return Forms(name, lambda: opened(plain), lambda: opened(sealed))


def content(batch: Batch) -> bytes:
    """All bytes of a batch's arrays."""
    (p,) = batch.parts
    windows = [a for w in p.observation.channels.values() for a in (w.values, w.valid, w.age_s)]
    return b"".join(a.tobytes() for a in (*windows, p.actions_NHA, p.action_valid_NH, p.sample_ids_N))


def spent(loader: Loader, first: int, count: int) -> float:
    """CPU seconds of so many batches."""
    begin = time.process_time()
    for step in range(first, first + count):
        loader.at(step)
    return time.process_time() - begin


def pairs(forms: Forms, pairs_wanted: int, batches: int, *, first_pass: bool) -> list[tuple[float, float]]:
    """(plain, sealed) CPU seconds of each pair."""
    kept = None if first_pass else (forms.plain(), forms.sealed())
    if kept is not None:
        for loader in kept:
            spent(loader, 0, -(-loader.samples[forms.name] // BATCH))  # every record was looked at once
    out = []
    for number in range(pairs_wanted):
        plain, sealed = kept or (forms.plain(), forms.sealed())
        first = 0 if first_pass else 1000 + number * batches
        gc.collect()
        took = {}
        for which in ("plain", "sealed") if number % 2 else ("sealed", "plain"):
            took[which] = spent(plain if which == "plain" else sealed, first, batches)
        out.append((took["plain"], took["sealed"]))
    return out


def interval(found: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Geometric mean of sealed / plain, and its 95% interval."""
    logs = [math.log(sealed / plain) for plain, sealed in found]
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    t = _T95[max(n for n in _T95 if n <= len(logs))]
    return math.exp(mean), math.exp(mean - t * error), math.exp(mean + t * error)


def measure(folder: Path, episode_count: int, pairs_wanted: int) -> list[dict[str, Any]]:
    """A row a case."""
    source = make_source(folder / "source", Spec(episodes=episode_count))
    # the machine without cameras leaves the pictures' streams where they are
    states = (replace(e, embodiment=STATES.name, streams={n: s for n, s in e.streams.items() if "cam" not in n})
              for e in episodes(source))  # fmt: skip
    rows = []
    cases = ((make_forms(folder / "a", ARM, episodes(source)), 24), (make_forms(folder / "b", STATES, states), 150))
    for forms, batches in cases:
        plain, sealed = forms.plain(), forms.sealed()
        same = all(content(plain.at(s)) == content(sealed.at(s)) for s in range(8))
        if not same:
            raise SystemExit(f"{forms.name}: sealed batches differ from plain ones; nothing is timed")
        for first_pass in (True, False):
            found = pairs(forms, pairs_wanted, batches, first_pass=first_pass)
            mean, low, high = interval(found)
            each_ms = [statistics.median(t) / batches * 1e3 for t in zip(*found, strict=True)]
            rows.append({
                "set": forms.name, "pass": "first" if first_pass else "later", "pairs": len(found),
                "batches": batches, "plain_ms": each_ms[0], "sealed_ms": each_ms[1],
                "ratio": mean, "low": low, "high": high,
            })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=40, help="of 150 steps")
    parser.add_argument("--pairs", type=int, default=20, help="at least 10")
    parser.add_argument("--out", type=Path, help="JSON with every row")
    o = parser.parse_args()
    if o.pairs < min(_T95):
        raise SystemExit(f"--pairs {o.pairs}: an interval needs at least {min(_T95)}")
    folder = Path(tempfile.mkdtemp(prefix="hagane-loading-"))
    try:
        rows = measure(folder, o.episodes, o.pairs)
    finally:
        shutil.rmtree(folder)
    print(f"CPU ms a batch of {BATCH}; sealed / plain with its 95% interval; asked: at most 1.05")
    for r in rows:
        print(
            f"{r['set']:14} {r['pass']:6} plain {r['plain_ms']:8.3f}  sealed {r['sealed_ms']:8.3f}"
            f"  {r['ratio']:.3f} [{r['low']:.3f}, {r['high']:.3f}]  {r['pairs']} pairs of {r['batches']} batches"
        )
    if o.out:
        told = {"date": str(date.today()), "machine": platform.processor() or platform.machine(),
                "cores": os.cpu_count(), "numpy": np.__version__, "rows": rows}  # fmt: skip
        o.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
