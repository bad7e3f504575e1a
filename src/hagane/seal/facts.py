"""Facts: the kinds of entries that a ledger knows, each a frozen dataclass, for writers and readers alike."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_type_hints

from hagane.terms import ContractError, canonical_json

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Fact:
    """Base of the kinds of entries below. A field `*_sha256` is 64 hex digits; a table of digests maps names to them.
    A field in `MAY_LACK` may be "" too.

    Raises:
        ContractError: a digest that is none, a number below 0.
    """

    KIND: ClassVar[str] = ""
    """Kind of the entry."""
    MAY_LACK: ClassVar[frozenset[str]] = frozenset()
    """Digests that may be ""."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name.endswith("_sha256"):
                values = list(value.values()) if isinstance(value, Mapping) else [value]
                lacks = value == "" and f.name in self.MAY_LACK
                if not lacks and not all(isinstance(v, str) and _DIGEST.fullmatch(v) for v in values):
                    raise ContractError(f"`{f.name}` is no sha256 of 64 hex digits", where=f"entry {self.KIND!r}")
            elif isinstance(value, int) and value < 0:
                raise ContractError(f"`{f.name}` is below 0", where=f"entry {self.KIND!r}")

    def body(self) -> dict[str, Any]:
        """The fact as JSON, an entry's body."""
        table: dict[str, Any] = json.loads(canonical_json(self))
        return table


@dataclass(frozen=True)
class ContractFact(Fact):
    """A signed contract came to this site."""

    KIND: ClassVar[str] = "contract"
    """Kind of the entry."""
    contract_sha256: str
    """sha256 of the contract's TOML."""
    owner: str
    """The member that owns the data."""
    datasets: tuple[str, ...]
    """Names of the data sets."""
    until: str
    """Last day of the contract, YYYY-MM-DD."""
    withdrawal: str
    """Withdrawal class: E, R or D."""


@dataclass(frozen=True)
class RunFact(Fact):
    """A run began; the tables map data sets to content, contract and the list of shards that the run may read."""

    KIND: ClassVar[str] = "run"
    """Kind of the entry."""
    MAY_LACK: ClassVar[frozenset[str]] = frozenset({"jail_sha256"})
    """Without a jail there is no plan of one."""
    run: str
    """Id of the run."""
    config_sha256: str
    """sha256 of the resolved configuration."""
    code_sha256: str
    """sha256 of the code."""
    datasets_sha256: Mapping[str, str]
    """Data set to sha256 of its content."""
    contracts_sha256: Mapping[str, str]
    """Data set to sha256 of its contract."""
    shards_sha256: Mapping[str, str]
    """Data set to sha256 of the list of shards that the run may read."""
    shard_counts: Mapping[str, int]
    """Data set to the number of these shards."""
    jail_sha256: str
    """sha256 of the jail's plan; "" without a jail."""
    environment_sha256: str
    """sha256 of the versions of what computes; the run's record lists them."""
    begun_from_sha256: Mapping[str, str]
    """Run to the id of its checkpoint that this one starts from, itself when it goes on."""


@dataclass(frozen=True)
class CheckpointFact(Fact):
    """A checkpoint was completed."""

    KIND: ClassVar[str] = "checkpoint"
    """Kind of the entry."""
    checkpoint_sha256: str
    """Id of the checkpoint."""
    run: str
    """Id of the run."""
    step: int
    """Step of the run."""


@dataclass(frozen=True)
class ExportFact(Fact):
    """Something left the site: a data set, or weights. Written before it leaves."""

    KIND: ClassVar[str] = "export"
    """Kind of the entry."""
    what: str
    """Name of what left."""
    manifest_sha256: str
    """sha256 of the manifest of what left."""
    contracts_sha256: Mapping[str, str]
    """Data set to sha256 of its contract."""
    to: str
    """Where to, in words."""
    files: int
    """Files that left."""
    size_bytes: int
    """Bytes that left."""


@dataclass(frozen=True)
class DeploymentFact(Fact):
    """A checkpoint began to serve a machine inside an envelope of limits."""

    KIND: ClassVar[str] = "deployment"
    """Kind of the entry."""
    MAY_LACK: ClassVar[frozenset[str]] = frozenset({"checkpoint_sha256", "envelope_sha256"})
    """A server of somebody else may tell no checkpoint; a server of ours knows no machine's limits."""
    checkpoint_sha256: str
    """Id of the checkpoint; "" when the server told none."""
    machine: str
    """Name of the machine."""
    envelope_sha256: str
    """sha256 of the machine's limits; "" at a server, which leaves them to the machine's own guard."""
    site: str
    """Name of the site."""


@dataclass(frozen=True)
class RefusalFact(Fact):
    """A request that `permit` refused."""

    KIND: ClassVar[str] = "refusal"
    """Kind of the entry."""
    dataset: str
    """Name of the data set."""
    owner: str
    """The member that owns the data."""
    purpose: str
    """What for."""
    country: str
    """Country of the site."""
    site: str
    """Name of the site."""
    today: str
    """Date of the request, YYYY-MM-DD."""
    reason: str
    """Why, in words."""


@dataclass(frozen=True)
class RecordingFact(Fact):
    """A recording of a machine was closed; the root is that of its chain of hashes."""

    KIND: ClassVar[str] = "recording"
    """Kind of the entry."""
    MAY_LACK: ClassVar[frozenset[str]] = frozenset({"checkpoint_sha256"})
    """A server of somebody else may tell no checkpoint."""
    root_sha256: str
    """Merkle root over what the recording says of itself, then over its messages by topic and time."""
    machine: str
    """Name of the machine."""
    checkpoint_sha256: str
    """Id of the checkpoint."""
    messages: int
    """Messages in the recording."""


@dataclass(frozen=True)
class EraseFact(Fact):
    """A data set's wrapping key was destroyed; the copies named cannot be reached from here."""

    KIND: ClassVar[str] = "erase"
    """Kind of the entry."""
    dataset: str
    """Name of the data set."""
    owner: str
    """The member that owns the data."""
    contract_sha256: str
    """sha256 of the contract's TOML."""
    generation: int
    """Generation of the key that was destroyed."""
    out_of_reach: tuple[str, ...]
    """Copies that may still exist, in words."""


@dataclass(frozen=True)
class WithdrawalFact(Fact):
    """An owner took back what a contract granted, in the class that the contract names."""

    KIND: ClassVar[str] = "withdrawal"
    """Kind of the entry."""
    owner: str
    """The member that owns the data."""
    contract_sha256: str
    """sha256 of the contract's TOML."""
    withdrawal: str
    """Withdrawal class: E, R or D."""
    datasets: tuple[str, ...]
    """Names of the data sets."""


@dataclass(frozen=True)
class ReadFact(Fact):
    """A data set was opened for a purpose."""

    KIND: ClassVar[str] = "read"
    """Kind of the entry."""
    dataset: str
    """Name of the data set."""
    contract_sha256: str
    """sha256 of the contract's TOML."""
    content_sha256: str
    """sha256 of the data set's content."""
    purpose: str
    """What for."""
    site: str
    """Name of the site."""


@dataclass(frozen=True)
class JailFact(Fact):
    """A process was put into a jail: what it may reach, and which layers this kernel held."""

    KIND: ClassVar[str] = "jail"
    """Kind of the entry."""
    plan_sha256: str
    """sha256 of the jail's plan."""
    verb: str
    """What ran in it."""
    kernel: str
    """Release of the kernel."""
    layers: tuple[str, ...]
    """Layers of protection that held."""
    missing: tuple[str, ...]
    """Layers that this kernel lacks."""


@dataclass(frozen=True)
class WitnessedFact(Fact):
    """Other members countersigned the ledger's head; `by` maps them to the time at which they did, Unix seconds."""

    KIND: ClassVar[str] = "witnessed"
    """Kind of the entry."""
    size: int
    """Entries under the head."""
    root_sha256: str
    """Root of the hashes."""
    by: Mapping[str, int]
    """Member to Unix seconds at which it signed."""


FACTS: dict[str, type[Fact]] = {kind.KIND: kind for kind in Fact.__subclasses__()}
"""The kinds by their names. Other kinds may stand in a ledger; their bodies are free."""


def read_fact(kind: str, body: Mapping[str, Any]) -> Fact:
    """An entry's body as the fact that it states.

    Raises:
        ContractError: no such kind, a field that is missing, unknown or of another type.
    """
    if kind not in FACTS:
        raise ContractError(f"{kind!a} is no kind of fact (known: {', '.join(sorted(FACTS))})")
    types = get_type_hints(FACTS[kind])
    wanted = {f.name: f for f in dataclasses.fields(FACTS[kind])}
    if odd := sorted(set(body) ^ set(wanted)):
        raise ContractError(f"fields missing or unknown: {', '.join(odd)}", where=f"entry {kind!r}")
    for name, value in body.items():
        if not _is(value, types[name]):
            raise ContractError(f"`{name}` has another type", where=f"entry {kind!r}")
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in body.items()}
    return FACTS[kind](**values)


def _is(value: object, hint: Any) -> bool:
    """Whether JSON is of a field's type: str, int, tuple[str, ...] or Mapping[str, str | int]."""
    if hint is str or hint is int:
        return type(value) is hint
    if hint == tuple[str, ...]:
        return isinstance(value, list) and all(type(v) is str for v in value)
    return isinstance(value, dict) and all(type(v) is hint.__args__[1] for v in value.values())
