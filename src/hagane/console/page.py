"""The page's view of a run: every table and drawing prepared, so that the template only lays out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hagane.console.curves import curves_of
from hagane.console.draw import duration, interval_bar, number, span, strip
from hagane.console.embed import embed_replays, safe_json
from hagane.console.figures import Figure, figures_of, in_order, is_rate, kind_of
from hagane.console.folder import RunFolder
from hagane.console.router import RouterUse, router_use
from hagane.console.story import Lineage, Source
from hagane.terms import Row, Scorecard

NAMES = {"arm": "an arm", "road": "a car", "mill": "a galvanising line"}


@dataclass(frozen=True)
class ScoreLine:
    """One row of a score table, ready to print."""

    case: str
    """Task or variant."""
    first: bool
    """First row of its case."""
    span: int
    """Rows of its case."""
    who: str
    """The controller."""
    kind: str
    """How it is drawn."""
    score: str
    """Score as text."""
    interval: str
    """95% interval as text."""
    n: int
    """Trials."""
    bar: Markup
    """The interval on the table's scale."""
    detail: tuple[str, ...]
    """Terms of the score, one a column of the table."""


@dataclass(frozen=True)
class ScoreTable:
    """One card as a table."""

    card: Scorecard
    """The card."""
    lines: tuple[ScoreLine, ...]
    """Rows by case, in the card's order."""
    scale: tuple[str, str]
    """Ends of the interval bars' scale."""
    terms: tuple[str, ...]
    """Names of the score's terms: the columns after the bars."""
    seeds: str
    """The trial seeds, shortened."""


@dataclass(frozen=True)
class Headline:
    """One headline figure as text and drawing."""

    figure: Figure
    """The numbers."""
    value: str
    """Our score."""
    interval: str
    """Its 95% interval."""
    goal: str
    """The goal's number."""
    strip: Markup
    """All rows on one line."""
    others: tuple[tuple[str, str, str], ...]
    """Kind, name and score of every row."""


def context_of(run: RunFolder) -> Mapping[str, Any]:
    """Everything the template names."""
    figures = figures_of(run.cards)
    router = router_use(run)
    curves = curves_of(run.metrics)
    replays = embed_replays({name: run.replays[name] for name in in_order(run.replays)})
    return {
        "run": run,
        "story": run.story,
        "notes": run.notes,
        "run_id": run.record.id if run.record else run.path.resolve().name,
        "title": run.story.title or "One network, several machines",
        "sentence": sentence(run),
        "headlines": tuple(_headline(f) for f in figures),
        "tables": tuple(_table(run.cards[f.embodiment], f) for f in figures),
        "replays": replays,
        "curves": curves,
        "router": router,
        "next_known": any(name.startswith("next/") for name in curves.last),
        "in_order": in_order,
        "permission_known": router is not None and _knows(router),
        "lineage": lineage_of(run),
        "commands": commands_of(run),
        "longest_step": max((s.seconds for s in run.story.steps), default=0.0) or 1.0,
        "data": safe_json({"replays": replays, "curves": curves.__dict__}),
        "started": moment(run.story.started),
        "moment": moment,
        "number": number,
        "duration": duration,
        "short": short,
    }


def sentence(run: RunFolder) -> str:
    """What this is, in one sentence that claims no more than the run's own parts show."""
    names = [NAMES.get(f.embodiment, f.embodiment) for f in figures_of(run.cards)]
    sources = _sources(run)
    owners = len({s.owner for s in sources if s.owner})
    signed = ", each under a signed contract" if all(s.contract_digest for s in sources) else ""
    if not names:
        return "The record of one training run; no machine has been judged yet."
    machines = ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
    from_whom = f", trained on data of {owners} owners{signed}" if owners > 1 else ""
    return f"One set of weights operates {machines}{from_whom}."


def short(digest: str, keep: int = 10) -> str:
    """The first digits of a digest; other text is left alone."""
    bare = digest.removeprefix("sha256:")
    hexadecimal = len(bare) >= 32 and all(c in "0123456789abcdefABCDEF" for c in bare)
    return f"{bare[:keep]}…" if hexadecimal else digest


def moment(text: str) -> str:
    """An ISO 8601 time as people write it; any other text as it is."""
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return text


def lineage_of(run: RunFolder) -> Lineage | None:
    """The demo's chain; without one, what the run's own record knows (no action, no ledger)."""
    if run.story.lineage is not None:
        return run.story.lineage
    if run.record is None:
        return None
    return Lineage(checkpoint=run.record.checkpoint_id, run=run.record.id, datasets=_sources(run))


def commands_of(run: RunFolder) -> tuple[tuple[str, str], ...]:
    """(what, command) to repeat and to look further."""
    folder = run.path if not run.path.is_absolute() else Path("runs") / run.path.name
    found = (
        [("train it again, from the resolved configuration", f"hagane train --again {folder}")] if run.config else []
    )
    found.append(("make this page again", f"hagane console report {folder}"))
    return tuple(found)


def _sources(run: RunFolder) -> tuple[Source, ...]:
    if run.story.lineage is not None and run.story.lineage.datasets:
        return run.story.lineage.datasets
    if run.record is None:
        return ()
    r = run.record
    return tuple(Source(n, r.owners.get(n, ""), d, r.contracts.get(n, "")) for n, d in r.datasets.items())


def _knows(router: RouterUse) -> bool:
    return any(c.permitted is not None for layer in router.layers for row in layer.values() for c in row)


def _headline(f: Figure) -> Headline:
    ours = f.ours
    return Headline(
        figure=f,
        value=number(ours.score if ours else None, percent=f.percent),
        interval=f"{number(ours.low, percent=f.percent)} to {number(ours.high, percent=f.percent)}" if ours else "",
        goal=number(f.goal, percent=f.percent),
        strip=strip(f),
        others=tuple((m.kind, m.who, number(m.score, percent=f.percent)) for m in f.marks),
    )


def _table(card: Scorecard, figure: Figure) -> ScoreTable:
    percent = is_rate(card)
    # the row over all cases first, then the cases in the card's order
    cases = sorted(dict.fromkeys(r.case for r in card.rows), key=lambda case: case != "all")
    rows = [r for case in cases for r in card.rows if r.case == case]
    terms = tuple(dict.fromkeys(k for r in rows for k in r.detail))[:8]
    scale = _scale(rows, percent)
    lines = tuple(_line(r, rows, i, percent, scale, terms) for i, r in enumerate(rows))
    ends = (number(scale[0], percent=percent), number(scale[1], percent=percent))
    return ScoreTable(card, lines, ends, terms, _seeds(card.seeds))


def _scale(rows: list[Row], percent: bool) -> tuple[float, float]:
    """0 to 1 for scores that live there; else the range of the rows that are worth comparing.

    An untrained policy can be off by orders of magnitude; its bar then ends in an arrow.
    """
    if percent or all(0 <= v <= 1 for r in rows for v in (r.score, r.low, r.high)):
        return 0.0, 1.0
    shown = [r for r in rows if kind_of(r.who) not in ("untrained", "simplest")] or rows
    return span(v for r in shown for v in (r.low, r.high))


def _line(
    row: Row, rows: list[Row], i: int, percent: bool, scale: tuple[float, float], terms: tuple[str, ...]
) -> ScoreLine:
    kind = kind_of(row.who)
    return ScoreLine(
        case=row.case,
        first=i == 0 or rows[i - 1].case != row.case,
        span=sum(r.case == row.case for r in rows),
        who=row.who,
        kind=kind,
        score=number(row.score, percent=percent),
        interval=f"{number(row.low, percent=percent)} to {number(row.high, percent=percent)}",
        n=row.n,
        bar=interval_bar(row.score, row.low, row.high, scale, kind=kind),
        detail=tuple(number(row.detail.get(k)) for k in terms),
    )


def _seeds(seeds: tuple[int, ...]) -> str:
    if not seeds:
        return "not recorded"
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    head = ", ".join(map(str, seeds[:6]))
    return head + (f" … {seeds[-1]} ({len(seeds)} in all)" if len(seeds) > 6 else "")
