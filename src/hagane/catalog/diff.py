"""What differs between two data sets: machine, statistics, episodes, tasks, findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

from hagane.catalog.catalog import Catalog
from hagane.catalog.contents import EpisodeFacts, episodes_of, sketches_of
from hagane.catalog.drift import Drift, drifts
from hagane.terms import Channel, Embodiment


@dataclass(frozen=True)
class Change:
    """One thing that is not the same."""

    what: str
    """Such as "rate_hz" or "channel speed: unit"."""
    first: str
    """In the first set."""
    second: str
    """In the second."""


@dataclass(frozen=True)
class Shared:
    """Episodes that both sets have."""

    content: int
    """Equal in all that they say."""
    sources: int
    """Logs that episodes of both were read from."""
    first_from_them: int
    """Episodes of the first set that come from those logs."""
    second_from_them: int
    """The same of the second."""


@dataclass(frozen=True)
class Difference:
    """Two data sets compared."""

    first: str
    """Name of the first."""
    second: str
    """Name of the second."""
    same: bool
    """True when machine and episodes are the same, whatever the sets are called."""
    facts: tuple[Change, ...]
    """Owner, site, contract, counts, where they differ."""
    machine: tuple[Change, ...]
    """Channels, units, rates, conventions, where they differ."""
    shared: Shared
    """Episodes in common."""
    drift: tuple[Drift, ...]
    """Every column that both machines have."""
    tasks: tuple[tuple[str, int, int], ...]
    """Instruction and episodes in each set."""
    findings: tuple[tuple[str, int, int], ...]
    """Kind of finding and how many in each set."""


def compare(catalog: Catalog, first: str, second: str, purpose: str = "view") -> Difference:
    """Compare two data sets of a catalog; reads their records and statistics, not their data.

    Raises:
        Refused: a contract does not permit reading statistics for this purpose.
        StoreError: no such data set; CorruptError: damaged.
    """
    sketches = [sketches_of(catalog, name, purpose) for name in (first, second)]
    records = [catalog.record(name) for name in (first, second)]
    machines = [catalog.embodiment(name) for name in (first, second)]
    facts = [episodes_of(catalog, name) for name in (first, second)]
    told = [
        {
            "owner": r.owner,
            "site": r.site,
            "contract": r.contract_digest,
            "episodes": r.episodes,
            "control steps": r.steps,
            "hours": round(r.seconds / 3600, 4),
        }
        for r in records
    ]
    known = {c.name: c for c in machines[1].channels()}
    drift = [
        d
        for c in machines[0].channels()
        if c.name in sketches[0] and c.name in sketches[1] and _comparable(c, known.get(c.name))
        for d in drifts(c, sketches[0][c.name], sketches[1][c.name])
    ]
    return Difference(
        first,
        second,
        records[0].digest == records[1].digest,
        tuple(_changes(told[0], told[1])),
        tuple(_machine(machines[0], machines[1])),
        _shared(facts[0], facts[1]),
        tuple(drift),
        _counts(facts, lambda e: [e.task]),
        _counts(facts, lambda e: e.findings),
    )


def _comparable(a: Channel, b: Channel | None) -> bool:
    return b is not None and a.kind == b.kind and a.columns == b.columns


def _changes(a: dict[str, object], b: dict[str, object], prefix: str = "") -> list[Change]:
    keys = [*a, *(k for k in b if k not in a)]
    return [
        Change(prefix + k, _words(a.get(k, "absent")), _words(b.get(k, "absent"))) for k in keys if a.get(k) != b.get(k)
    ]


def _machine(a: Embodiment, b: Embodiment) -> list[Change]:
    out = _changes(_plain(a, "observe", "act"), _plain(b, "observe", "act"))
    for side in ("observe", "act"):
        of_a: dict[str, Channel] = {c.name: c for c in getattr(a, side)}
        of_b: dict[str, Channel] = {c.name: c for c in getattr(b, side)}
        for name in [*of_a, *(n for n in of_b if n not in of_a)]:
            if name in of_a and name in of_b:
                out += _changes(_plain(of_a[name]), _plain(of_b[name]), f"{side} {name}: ")
            else:
                out.append(Change(f"{side} {name}", *("present" if name in x else "absent" for x in (of_a, of_b))))
        order_a, order_b = ([n for n in x if n in y] for x, y in ((of_a, of_b), (of_b, of_a)))
        if order_a != order_b:
            out.append(Change(f"order of {side}", ", ".join(order_a), ", ".join(order_b)))
    return out


def _plain(value: Embodiment | Channel, *without: str) -> dict[str, object]:
    return {f.name: getattr(value, f.name) for f in fields(value) if f.name not in without}


def _shared(a: Sequence[EpisodeFacts], b: Sequence[EpisodeFacts]) -> Shared:
    content = {e.content for e in a} & {e.content for e in b}
    sources = ({e.source for e in a} & {e.source for e in b}) - {""}
    counts = [sum(e.source in sources for e in side) for side in (a, b)]
    return Shared(len(content), len(sources), counts[0], counts[1])


def _counts(
    facts: Sequence[Sequence[EpisodeFacts]], words: Callable[[EpisodeFacts], Iterable[str]]
) -> tuple[tuple[str, int, int], ...]:
    a, b = (Counter(word for e in side for word in words(e)) for side in facts)
    return tuple((word, a[word], b[word]) for word in sorted({*a, *b}))


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value) if value != "" else "not told"
