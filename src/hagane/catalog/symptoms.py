"""What the doctor says: symptoms, how bad each is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from hagane.catalog.lag import Lag
from hagane.terms import Finding

Severity = Literal["serious", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class Symptom:
    """One row of the doctor's table: one kind of fault in one channel, over all episodes."""

    severity: Severity
    """serious (do not train on it before it is understood), warning, or note."""
    kind: str
    """A kind of `Finding`, or one of the doctor's own (see `ADVICE`)."""
    channel: str
    """Stream name; "*" for all."""
    episodes: int
    """Episodes concerned."""
    count: int
    """Samples concerned."""
    share: float
    """Part of the channel's samples (or of the episodes), 0 to 1."""
    episode: str
    """The first episode concerned; "" for the whole set."""
    time_ns: int
    """Where it begins there, on the episode's clock."""
    detail: str
    """In words, with figures."""

    @property
    def advice(self) -> str:
        """What to do."""
        return ADVICE[self.kind]


@dataclass(frozen=True)
class ChannelFacts:
    """One stream over all episodes."""

    name: str
    """Stream name."""
    kind: str
    """image, vector, set or text."""
    unit: tuple[str, ...]
    """Declared unit, one for all columns or one a column."""
    episodes: int
    """Episodes that have samples of it."""
    samples: int
    """Samples."""
    valid: float
    """Share of valid samples (sets: with a valid place)."""
    declared_hz: float
    """Rate that the embodiment says."""
    measured_hz: float
    """Median over episodes of the rate between samples; 0 when unknown."""


@dataclass(frozen=True)
class Diagnosis:
    """All that the doctor found in one data set or log."""

    source: str
    """Name of the data set, or path of the log."""
    embodiment: str
    """The machine."""
    digest: str
    """Content digest of the data set; "" for a log that is not in a catalog."""
    episodes: int
    """Episodes examined."""
    seconds: float
    """Their length together."""
    symptoms: tuple[Symptom, ...]
    """The worst first."""
    channels: tuple[ChannelFacts, ...]
    """Every stream."""
    lags: tuple[Lag, ...]
    """From commands to what follows them."""
    lengths_s: tuple[float, ...]
    """Length of every episode."""
    outcomes: dict[str, int]
    """Episodes by outcome, "" where unknown."""
    findings: tuple[Finding, ...]
    """Single findings behind the symptoms, at most `MOST_FINDINGS`."""
    findings_left_out: int
    """Findings beyond that number."""

    @property
    def serious(self) -> bool:
        """Whether something serious was found."""
        return any(s.severity == "serious" for s in self.symptoms)


MOST_FINDINGS = 20_000

ADVICE: dict[str, str] = {
    "duplicate": "look for a logger that writes twice, or a camera slower than its channel says",
    "missing": "look for a full disk, a busy bus or a wrong rate_hz; the model sees the age of what it gets",
    "clock-jump": "synchronise the clocks; split the log at the jump",
    "stuck": "check the sensor; cut these episodes or mark the samples",
    "nan": "find what writes them; the samples are invalid already",
    "out-of-range": "check low and high, the scale and the sensor; the samples are invalid already",
    "unit-mismatch": "correct the unit in the embodiment file, or the export; then bring the log in again",
    "truncated": "copy the log again from the machine if it is whole there",
    "no-samples": "correct `source` in the embodiment file, or leave the channel out",
    "bad-quality": "find out why the source doubts them; the samples are invalid already",
    "note": "no fault: see that it is meant so",
    "frozen": "check camera and driver; cut these episodes: the model would learn to act blind",
    "black": "check lens, exposure and trigger; cut these episodes",
    "saturated": "lower the exposure; cut these episodes",
    "blank": "check the camera's cable and pixel format",
    "unreadable": "copy the log again; the pictures are invalid already",
    "constant": "leave the channel out, or find out why it never moves",
    "total": "a meter that counts: take its difference over time, or correct `source` and unit",
    "leak": "take the channel out of `observe`: at run time it does not hold the answer",
    "at-limit": "widen the machine's limits, or accept that the model learns the limiter",
    "length": "look at these episodes: cut short, or not cut at all",
    "rate": "correct rate_hz in the embodiment file",
    "moves-first": "check stamps and order of columns: a state should follow its command",
    "metadata": "do not train on it; bring the logs in again",
    "refused": "mend what it says; nothing after this place was examined",
}
"""What to do, by kind."""

_ALWAYS = {"stuck", "unit-mismatch", "frozen", "unreadable", "leak", "metadata", "refused"}
_FROM_SHARE = {
    "nan": 0.01,
    "out-of-range": 0.01,
    "missing": 0.05,
    "bad-quality": 0.05,
    "duplicate": 0.2,
    "black": 0.01,
    "saturated": 0.05,
    "blank": 0.01,
    "no-samples": 1.0,
}


def severity_of(kind: str, channel: str, share: float) -> Severity:
    """How bad it is: some kinds always are, some from a share of samples on; a note never is.

    A clock that goes back in one stream is serious; one that goes forward in all ("*") is a pause of the logger.
    """
    if kind == "note":
        return "note"
    if kind in _ALWAYS or (kind == "clock-jump" and channel != "*"):
        return "serious"
    return "serious" if share >= _FROM_SHARE.get(kind, 2.0) else "warning"
