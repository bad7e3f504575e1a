"""A site whose books can be audited: two members' data, two runs of which one starts from the other, a machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hagane.cli import main
from hagane.cli.noted import note_deployment, note_recording
from hagane.cli.site import ledger_of
from hagane.intake.recorder import McapRecorder
from hagane.seal import TrustStore, key_id_of, load_contract, read_public
from hagane.seal.facts import RunFact
from hagane.terms import Channel, Embodiment, digest_bytes

ARM = Embodiment(
    "arm", "robot", "member-robots", 20.0, 4, (Channel("joints", shape=(2,)),), (Channel("move", shape=(2,)),)
)
SETS = {"road-demo": "member-cars", "arm-demo": "member-robots"}


def sha(text: str) -> str:
    """A digest that looks real."""
    return digest_bytes(text.encode())


@dataclass(frozen=True)
class Books:
    """Where the site lies, and what it made."""

    home: Path
    recording: Path
    contracts: dict[str, str]

    @property
    def first(self) -> str:
        return sha("first checkpoint")

    @property
    def second(self) -> str:
        return sha("second checkpoint")


def books(home: Path, *, until: str = "") -> Books:
    """The site; `until` leaves out what comes from that step on: "run", "deployment", "recording"."""
    home.mkdir(parents=True)
    for owner in (*SETS.values(), "host"):
        assert main(["contract", "keygen", "--owner", owner, "--out", str(home / "keys")]) == 0
    host = key_id_of(read_public(home / "keys" / "host.pub"))
    record = f'name = "lab"\ncountry = "JP"\noperator = "consortium"\nhost_key = "{host}"\n'
    (home / "site.toml").write_text(record)
    trust = TrustStore(home / "trust")
    ledger, contracts = ledger_of(home), {}
    for name, owner in SETS.items():
        trust.add(owner, read_public(home / "keys" / f"{owner}.pub"))
        path = home / "contracts" / f"{owner}.toml"
        path.parent.mkdir(exist_ok=True)
        terms = ["--owner", owner, "--dataset", name, "--site", "lab", "--protection", "process"]
        assert main(["contract", "new", str(path), *terms]) == 0
        assert main(["contract", "sign", str(path), "--key", str(home / "keys" / f"{owner}.pem")]) == 0
        contracts[name] = load_contract(path, trust).digest
        about = {"dataset": name, "contract": contracts[name], "site": "lab"}
        ledger.append("add", {**about, "digest": sha(name), "episodes": 3})
    made = Books(home, home / "drives" / "arm.mcap", contracts)
    if until == "run":
        return made
    run(made, "first", ("road-demo",), made.first, {})
    run(made, "second", ("arm-demo",), made.second, {"first": made.first})
    if until == "deployment":
        return made
    note_deployment(home, made.second, "arm")
    record_drive(made, noted=until != "recording")
    return made


def run(made: Books, name: str, sets: tuple[str, ...], checkpoint: str, begun_from: dict[str, str]) -> None:
    """A run's entries, as `hagane train` writes them."""
    ledger = ledger_of(made.home)
    for dataset in sets:
        read(made, dataset, name)
    told = {d: sha(d) for d in sets}
    granted = {d: made.contracts[d] for d in sets}
    shards = dict.fromkeys(sets, sha("shards"))
    counts = dict.fromkeys(sets, 1)
    ledger.note(RunFact(name, sha("c"), sha("code"), told, granted, shards, counts, "", sha("environment"), begun_from))
    ledger.append("checkpoint", {"run": name, "checkpoint": checkpoint, "step": 1, "datasets": told})


def read(made: Books, dataset: str, name: str = "", purpose: str = "anchor") -> None:
    """A read, as the catalog notes it."""
    about = {"dataset": dataset, "contract": made.contracts[dataset], "site": "lab", "purpose": purpose}
    ledger_of(made.home).append("read", {**about, "digest": sha(dataset), **({"run": name} if name else {})})


def record_drive(made: Books, *, noted: bool = True, steps: int = 5) -> None:
    """A short drive of the arm, recorded."""
    with McapRecorder(made.recording, ARM, checkpoint_id=made.second, wait=True) as recorder:
        for k in range(steps):
            for applied in (False, True):
                recorder.actions(k * ARM.step_ns, np.array([k, 0.5], np.float32), applied=applied)
            recorder.event("/guard", k * ARM.step_ns, {"state": "run", "interventions": []})
    if noted:
        note_recording(made.home, made.recording)
