"""What the tests of the catalog share: three small machines, made-up episodes, a site with trusted owners."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np

from hagane.catalog import Catalog
from hagane.seal import (
    Ledger,
    SignedContract,
    Site,
    TrustStore,
    generate_key,
    load_contract,
    load_private,
    public_of,
    read_contract,
    sign_contract,
)
from hagane.terms import APPLIED, Channel, Contract, Embodiment, Episode, Finding, History, Stream, dump_toml

ARM = Embodiment(
    "arm",
    "robot",
    "member-robots",
    20.0,
    8,
    (Channel("joints", shape=(3,), unit=("rad",), history=History(2)), Channel("word", kind="text")),
    (Channel("hand", shape=(2,), history=History(2)), Channel("grip")),
)
ROAD = Embodiment(
    "road",
    "vehicle",
    "member-cars",
    10.0,
    8,
    (Channel("ego", shape=(4,)), Channel("agents", kind="set", shape=(5, 3), history=History(2, 2))),
    (Channel("steer"),),
)
MILL = Embodiment(
    "mill",
    "plant",
    "member-steel",
    0.5,
    8,
    (Channel("pv", shape=(3,), history=History(6)), Channel("speed", max_age_s=5.0)),
    (Channel("sp", shape=(2,)),),
)
MACHINES = {m.name: m for m in (ARM, ROAD, MILL)}
SITE = Site("plant-7", "JP", "consortium")


def episode(machine: Embodiment, number: int, steps: int = 0, *, applied: bool = True, actions: bool = True) -> Episode:
    """A made-up episode at the control rate; a function of (machine, number) only."""
    rng = np.random.default_rng([number, len(machine.name)])
    steps = steps or 20 + number % 7
    times = np.arange(steps, dtype=np.int64) * machine.step_ns
    streams: dict[str, Stream] = {}
    for c in machine.observe:
        if c.kind == "text":
            streams[c.name] = Stream(times[:1], np.array(["tidy up"], object), np.ones(1, bool))
            continue
        flags = (steps, c.places) if c.kind == "set" else (steps,)
        valid = rng.random(flags) > 0.3 if c.kind == "set" else np.ones(flags, bool)
        streams[c.name] = Stream(times, rng.normal(size=(steps, *c.shape)).astype(np.float32), valid, c.unit, 7, 3)
    for c in machine.act if actions else ():
        command = rng.normal(size=(steps, *c.shape)).astype(np.float32)
        streams[c.name] = Stream(times, command, np.ones(steps, bool), c.unit)
        if applied:
            streams[c.name + APPLIED] = Stream(times, command + np.float32(0.5), np.ones(steps, bool), c.unit)
    name = f"{machine.name}/case/{number:06d}"
    finding = Finding("stuck", name, "ego", 5, 3, "the same value 3 times")
    found = (finding,) if number % 4 == 0 else ()
    return Episode(name, machine.name, streams, f"task {number % 2}", "success", "ab" * 32, found)


def episodes(machine: Embodiment, count: int, first: int = 0) -> Iterator[Episode]:
    """Episodes first .. first + count - 1."""
    return (episode(machine, n) for n in range(first, first + count))


@dataclass(frozen=True)
class Home:
    """A site's folder with keys of three owners."""

    folder: Path

    @property
    def trust(self) -> TrustStore:
        return TrustStore(self.folder / "trust")

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / "ledger.jsonl")

    def catalog(self) -> Catalog:
        return Catalog.open(self.folder / "catalog", SITE, self.trust, self.ledger)

    def contract(self, machine: Embodiment, *datasets: str, **terms: object) -> SignedContract:
        """A contract of the machine's owner, signed; `terms` replace the generous ones."""
        key = self.folder / f"{machine.owner}.pem"
        if not key.exists():
            generate_key(key)
            self.trust.add(machine.owner, public_of(load_private(key)))
        usual: dict[str, object] = {
            "owner": machine.owner,
            "datasets": datasets or (f"{machine.name}-demo",),
            "residency": ("JP",),
            "sites": ("plant-7",),
            "purposes": ("anchor", "view"),
            "until": date(2099, 12, 31),
            "issued": date(2020, 1, 1),
            "serial": 1,
            "protection": "process",
        }
        path = self.folder / f"{machine.name}.toml"
        contract = Contract(**{**usual, **terms})  # type: ignore[arg-type]
        if path.exists() and "serial" not in terms:
            before = read_contract(path.read_bytes())
            same = replace(contract, serial=before.serial) == before
            contract = replace(contract, serial=before.serial if same else before.serial + 1)
        path.write_text(dump_toml(contract), "utf-8")
        sign_contract(path, load_private(key))
        return load_contract(path, self.trust)


def make_home(folder: Path) -> Home:
    """A site's folder, with site.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trust").mkdir(exist_ok=True)
    (folder / "site.toml").write_text(dump_toml(SITE), "utf-8")
    return Home(folder)


def filled(folder: Path, counts: dict[str, int]) -> Catalog:
    """A catalog with data sets "<machine>-demo" of so many episodes."""
    home = make_home(folder)
    catalog = home.catalog()
    for name, count in counts.items():
        machine = MACHINES[name]
        catalog.add(f"{name}-demo", machine, home.contract(machine), episodes(machine, count))
    return catalog


def same_episode(a: Episode, b: Episode) -> None:
    """Assert that two episodes are equal in every byte."""
    facts = ("id", "embodiment", "task", "outcome", "digest", "findings")
    assert [getattr(a, f) for f in facts] == [getattr(b, f) for f in facts]
    assert list(a.streams) == list(b.streams)
    for name, s in a.streams.items():
        t = b.streams[name]
        assert s.values.dtype == t.values.dtype and s.values.shape == t.values.shape
        np.testing.assert_array_equal(s.times_ns, t.times_ns)
        np.testing.assert_array_equal(s.values, t.values)
        np.testing.assert_array_equal(s.valid, t.valid)
        assert (s.unit, s.clock_offset_ns, s.latency_ns) == (t.unit, t.clock_offset_ns, t.latency_ns)
