"""What a ledger's entries say, once: the kinds and their fields, and the in-toto Statement that carries them.

A signed entry holds an in-toto Statement v1 (github.com/in-toto/attestation): its subjects are all that the facts name
by sha256, its predicate the facts with site, place and time. The predicate's type is a name under `.invalid` (RFC
2606), so that no reader tries to fetch it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_type_hints

from hagane.seal.envelope import Envelope
from hagane.terms import ContractError, canonical_json, digest_value

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATES = "https://hagane.invalid/ledger/v1/"
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Statement:
    """What a site says in one entry of its ledger."""

    kind: str
    """Kind of the entry."""
    site: str
    """Name of the site that says it."""
    index: int
    """Place in the site's ledger, so that the signature cannot be used at another."""
    time_ns: int
    """When, Unix nanoseconds."""
    facts: Mapping[str, Any]
    """The entry's body, as JSON."""

    def payload(self) -> bytes:
        """The in-toto Statement as canonical JSON: the bytes that are signed."""
        named = sorted(_digests(self.facts, ()))
        if not named:  # a Statement is about something: then about its own facts
            named = [(self.kind, digest_value(self.facts))]
        return canonical_json(
            {
                "_type": STATEMENT_TYPE,
                "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in named],
                "predicateType": PREDICATES + self.kind,
                "predicate": {"site": self.site, "index": self.index, "time_ns": self.time_ns, "facts": self.facts},
            }
        )


def read_statement(envelope: Envelope) -> Statement:
    """The statement in an envelope; its signature is another question (`verify_envelope`).

    Raises:
        ContractError: no Statement of a ledger in exactly the form that `Statement.payload` writes.
    """
    try:
        table = json.loads(envelope.payload)
        said = table["predicate"]
        kind = table["predicateType"].removeprefix(PREDICATES)
        out = Statement(kind, said["site"], said["index"], said["time_ns"], said["facts"])
        exact = envelope.payload_type == PAYLOAD_TYPE and out.payload() == envelope.payload
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        exact = False
    if not exact:
        raise ContractError("the signed text is no statement of a ledger")
    return out


@dataclass(frozen=True)
class Fact:
    """Base of the kinds of entries below. A field `*_sha256` is 64 hex digits; a table of digests maps names to them.

    Raises:
        ContractError: a digest that is none, a number below 0.
    """

    KIND: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name.endswith("_sha256"):
                values = list(value.values()) if isinstance(value, Mapping) else [value]
                if not all(isinstance(v, str) and _DIGEST.fullmatch(v) for v in values):
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
    contract_sha256: str
    owner: str
    datasets: tuple[str, ...]
    until: str
    withdrawal: str


@dataclass(frozen=True)
class RunFact(Fact):
    """A run began; the tables map data sets to content, contract and the list of shards that the run may read."""

    KIND: ClassVar[str] = "run"
    run: str
    config_sha256: str
    code_sha256: str
    datasets_sha256: Mapping[str, str]
    contracts_sha256: Mapping[str, str]
    shards_sha256: Mapping[str, str]
    shard_counts: Mapping[str, int]
    jail_sha256: str


@dataclass(frozen=True)
class CheckpointFact(Fact):
    """A checkpoint was completed."""

    KIND: ClassVar[str] = "checkpoint"
    checkpoint_sha256: str
    run: str
    step: int


@dataclass(frozen=True)
class ExportFact(Fact):
    """Something left the site: a data set, or weights. Written before it leaves."""

    KIND: ClassVar[str] = "export"
    what: str
    manifest_sha256: str
    contracts_sha256: Mapping[str, str]
    to: str
    files: int
    size_bytes: int


@dataclass(frozen=True)
class DeploymentFact(Fact):
    """A checkpoint began to serve a machine inside an envelope of limits."""

    KIND: ClassVar[str] = "deployment"
    checkpoint_sha256: str
    machine: str
    envelope_sha256: str


@dataclass(frozen=True)
class RefusalFact(Fact):
    """A request that `permit` refused."""

    KIND: ClassVar[str] = "refusal"
    dataset: str
    owner: str
    purpose: str
    country: str
    site: str
    today: str
    reason: str


@dataclass(frozen=True)
class RecordingFact(Fact):
    """A recording of a machine was closed; the root is that of its chain of hashes."""

    KIND: ClassVar[str] = "recording"
    root_sha256: str
    machine: str
    checkpoint_sha256: str
    messages: int


@dataclass(frozen=True)
class EraseFact(Fact):
    """A data set's wrapping key was destroyed; the copies named cannot be reached from here."""

    KIND: ClassVar[str] = "erase"
    dataset: str
    owner: str
    contract_sha256: str
    generation: int
    out_of_reach: tuple[str, ...]


@dataclass(frozen=True)
class WithdrawalFact(Fact):
    """An owner took back what a contract granted, in the class that the contract names."""

    KIND: ClassVar[str] = "withdrawal"
    owner: str
    contract_sha256: str
    withdrawal: str
    datasets: tuple[str, ...]


@dataclass(frozen=True)
class ReadFact(Fact):
    """A data set was opened for a purpose."""

    KIND: ClassVar[str] = "read"
    dataset: str
    contract_sha256: str
    content_sha256: str
    purpose: str
    site: str


@dataclass(frozen=True)
class JailFact(Fact):
    """A process was put into a jail: what it may reach, and which layers this kernel held."""

    KIND: ClassVar[str] = "jail"
    plan_sha256: str
    verb: str
    kernel: str
    layers: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class WitnessedFact(Fact):
    """Other members countersigned the ledger's head; `by` maps them to the time at which they did, Unix seconds."""

    KIND: ClassVar[str] = "witnessed"
    size: int
    root_sha256: str
    by: Mapping[str, int]


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


def _digests(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(dotted name, digest) of every text in the facts that is a sha256."""
    if isinstance(value, str):
        if _DIGEST.fullmatch(value):
            yield ".".join(path), value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _digests(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _digests(inner, (*path, str(place)))
