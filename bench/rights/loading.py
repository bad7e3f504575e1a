"""Sealed loading beside plain: the same batches of the same data set, in turns, in one process; CPU seconds.

Cases: two JPEGs of 224 x 224, state and a chunk of 16 steps (the sample of bench/data), and the same without pictures;
each on the first pass over the data, where sealed records are decrypted for the first time, and on later ones. A pair
is a run of each form over the same steps, the order of the two turning from pair to pair; the interval is that of
Student's t on the logarithms of the ratios. Before anything is timed, batches are compared to the bit.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
from bench.rights.measured import Figure, ratio
from peer_ours import ARM, episodes
from source import Spec, make_source

from hagane.catalog import Catalog, Loader, Mixture
from hagane.catalog.sealing import CatalogKeys, seal_cache, seal_set
from hagane.seal import Keyring, SignedContract, Site, TrustStore, generate_key, load_contract, public_of, sign_contract
from hagane.terms import Batch, Contract, Embodiment, Episode, HaganeError, dump_toml

BATCH = 32
SITE = Site("plant-7", "JP", "consortium")
STATES = replace(ARM, name="bench-states", observe=tuple(c for c in ARM.observe if c.kind != "image"))


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


def measure(folder: Path, episode_count: int = 40, pairs_wanted: int = 20, batches: int = 0) -> list[Figure]:
    """Rows of the table.

    Args:
        folder: new.
        episode_count: of 150 steps.
        pairs_wanted: of runs.
        batches: a run; 0: 24 with pictures, 150 without.

    Raises:
        HaganeError: a sealed batch differs from the plain one.
    """
    folder.mkdir()
    source = make_source(folder / "source", Spec(episodes=episode_count))
    # the machine without cameras leaves the pictures' streams where they are
    states = (replace(e, embodiment=STATES.name, streams={n: s for n, s in e.streams.items() if "cam" not in n})
              for e in episodes(source))  # fmt: skip
    rows = []
    cases = (
        ("two pictures and state", make_forms(folder / "a", ARM, episodes(source)), batches or 24),
        ("state alone", make_forms(folder / "b", STATES, states), batches or 150),
    )
    for what, forms, count in cases:
        plain, sealed = forms.plain(), forms.sealed()
        if any(content(plain.at(s)) != content(sealed.at(s)) for s in range(8)):
            raise HaganeError(f"{forms.name}: sealed batches differ from plain ones; nothing is timed")
        for first_pass in (True, False):
            found = pairs(forms, pairs_wanted, count, first_pass=first_pass)
            mean, low, high = ratio(found)
            each_ms = [statistics.median(t) / count * 1e3 for t in zip(*found, strict=True)]
            passed = "first pass" if first_pass else "later passes"
            how = f"CPU, {len(found)} pairs of {count} batches of {BATCH}; {each_ms[0]:.3g} and {each_ms[1]:.3g} ms"
            rows.append(Figure(f"loading sealed / plain: {what}, {passed}", "x", mean, how, 1.05, low, high))
    return rows
