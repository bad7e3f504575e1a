"""What the demo tells about a run beside its figures: the parts of `story.json`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """One step of the demo, as it was run."""

    name: str
    """What it does, in words."""
    command: str = ""
    """The command that does the same by hand."""
    seconds: float = 0.0
    """Wall time."""
    lines: tuple[str, ...] = ()
    """What it printed, shortened."""


@dataclass(frozen=True)
class Intake:
    """One data set as it came in."""

    dataset: str
    """Data set name."""
    owner: str = ""
    """The member it belongs to."""
    format: str = ""
    """Format of the member's log."""
    episodes: int = 0
    """Episodes read."""
    findings: tuple[str, ...] = ()
    """What the checks found, one line each."""


@dataclass(frozen=True)
class Refusal:
    """One request that was refused."""

    what: str
    """What was asked for."""
    who: str = ""
    """Who asked, or whose terms refused it."""
    reason: str = ""
    """Why, in the words of the decision."""


@dataclass(frozen=True)
class Source:
    """One data set that a run read."""

    name: str
    """Data set name."""
    owner: str = ""
    """The member it belongs to."""
    digest: str = ""
    """sha256 of its content."""
    contract_digest: str = ""
    """sha256 of the contract it was read under."""


@dataclass(frozen=True)
class LedgerHead:
    """Head of the append-only log that the decisions stand in."""

    size: int = 0
    """Entries."""
    root: str = ""
    """Merkle root (RFC 9162), hex."""


@dataclass(frozen=True)
class Lineage:
    """From one action on a machine back to the owners of the data behind it."""

    action: dict[str, str | float | int | bool | list[float] | None] = field(default_factory=dict)
    """The action: machine, time, values; shown as it is."""
    checkpoint: str = ""
    """Digest of the checkpoint that decided it."""
    run: str = ""
    """Id of the run that made the checkpoint."""
    datasets: tuple[Source, ...] = ()
    """What that run read."""
    ledger: LedgerHead | None = None
    """Head of the ledger at that time."""


@dataclass(frozen=True)
class Drive:
    """One drive against the server, through the guard."""

    embodiment: str
    """The machine."""
    score: float | None = None
    """Score of the drive, in the card's measure."""
    interventions: int | None = None
    """How often the guard changed or stopped an action."""
    latency_ms_p50: float | None = None
    """Median time from observation to action chunk, milliseconds."""
    latency_ms_p99: float | None = None
    """99th percentile of the same."""
    recording: str = ""
    """File of the recording."""
    came_back: int | str | bool | None = None
    """What intake read back from the recording: episodes, or a sentence."""


@dataclass(frozen=True)
class Story:
    """All parts of `story.json`; a part that is absent is None or empty."""

    title: str = ""
    """Title of the page."""
    machine: dict[str, str | float | int | bool | None] = field(default_factory=dict)
    """The computer: processor, cores, memory."""
    started: str = ""
    """When, ISO 8601."""
    seconds: float | None = None
    """Wall time of the whole."""
    steps: tuple[Step, ...] = ()
    """The steps in order."""
    intake: tuple[Intake, ...] = ()
    """What came in."""
    refusals: tuple[Refusal, ...] | None = None
    """What was refused; None when nobody kept count."""
    lineage: Lineage | None = None
    """The chain behind one action."""
    drives: tuple[Drive, ...] = ()
    """Drives through the guard."""
