"""The headline figures: what ours reached on each machine, against the goal that was stated beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hagane.terms import Row, Scorecard


@dataclass(frozen=True)
class Mark:
    """One controller on the figure's scale."""

    who: str
    """Row name."""
    score: float
    """Score over the figure's cases."""
    low: float
    """Lower end of the 95% interval."""
    high: float
    """Upper end."""
    n: int
    """Trials."""
    kind: str
    """untrained, simplest, classical, ours or expert: how it is drawn."""


@dataclass(frozen=True)
class Figure:
    """One headline figure."""

    embodiment: str
    """The machine."""
    label: str
    """What the number is."""
    measure: str
    """The card's measure."""
    marks: tuple[Mark, ...]
    """All rows, in the card's order."""
    ours: Mark | None
    """Our row; None when the card has none."""
    goal: float | None
    """What ours must reach; None when the rows it needs are missing."""
    goal_text: str
    """The goal in words."""
    percent: bool
    """Shown as a percentage."""

    @property
    def verdict(self) -> str:
        """reached, reached (the interval includes the goal), not reached, or not measured."""
        if self.ours is None or self.goal is None:
            return "not measured"
        if self.ours.score < self.goal:
            return "not reached"
        return "reached" if self.ours.low >= self.goal else "reached, within noise"


def kind_of(who: str) -> str:
    """How a row is drawn: its name before the colon, with constant counted as simplest."""
    head = who.split(":")[0].strip().lower()
    if head in ("constant", "simplest", "random", "lane", "hold"):
        return "simplest"
    return head if head in ("untrained", "ours", "expert") else "classical"


def wilson(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95% score interval of a proportion (Wilson 1927)."""
    if n < 1:
        return 0.0, 1.0
    p, zz = successes / n, z * z
    middle = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(max(p * (1 - p) / n + zz / (4 * n * n), 0.0))
    return max(0.0, middle - half), min(1.0, middle + half)


def is_rate(card: Scorecard) -> bool:
    """Whether the scores are success rates."""
    return card.measure.lower().startswith("success")


def over_cases(rows: Iterable[Row], rate: bool) -> Mark:
    """One mark of a controller over its cases.

    Rates are pooled (Wilson's interval); means are weighted by n, their half widths added as independent errors.
    """
    found = list(rows)
    n = sum(r.n for r in found)
    if len(found) == 1 or n == 0:
        r = found[0]
        return Mark(r.who, r.score, r.low, r.high, r.n, kind_of(r.who))
    score = sum(r.score * r.n for r in found) / n
    if rate:
        low, high = wilson(score * n, n)
    else:
        below = math.sqrt(sum((r.n / n * (r.score - r.low)) ** 2 for r in found))
        above = math.sqrt(sum((r.n / n * (r.high - r.score)) ** 2 for r in found))
        low, high = score - below, score + above
    return Mark(found[0].who, score, low, high, n, kind_of(found[0].who))


def marks_of(card: Scorecard) -> tuple[Mark, ...]:
    """One mark a controller, over the cases; a row that already stands for all cases is taken as it is."""
    rows = [r for r in card.rows if math.isfinite(r.score)]
    whole = [r for r in rows if r.case.lower() in ("all", "overall", "mean")]
    rows = whole or rows
    names = list(dict.fromkeys(r.who for r in rows))
    return tuple(over_cases((r for r in rows if r.who == who), is_rate(card)) for who in names)


def figure_of(card: Scorecard) -> Figure:
    """The headline of one card, with the goal of its machine."""
    marks = marks_of(card)
    ours = next((m for m in marks if m.kind == "ours"), None)
    goal, text = _goal(card.embodiment, marks)
    labels = {
        "arm": "tasks done by the arm",
        "road": "driving score on the road",
        "mill": "return of the galvanising line",
    }
    label = labels.get(card.embodiment, f"score on {card.embodiment}")
    return Figure(card.embodiment, label, card.measure, marks, ours, goal, text, is_rate(card))


def figures_of(cards: Mapping[str, Scorecard]) -> tuple[Figure, ...]:
    """One headline a card."""
    return tuple(figure_of(cards[name]) for name in in_order(cards))


def in_order(names: Iterable[str]) -> list[str]:
    """Arm, road and mill first, then the others by name."""
    order = {"arm": 0, "road": 1, "mill": 2}
    return sorted(names, key=lambda name: (order.get(name, 3), name))


def _find(marks: Iterable[Mark], *words: str) -> Mark | None:
    for m in marks:
        if m.kind != "ours" and any(w in m.who.lower().replace(":", " ").split() for w in words):
            return m
    return None


def _goal(embodiment: str, marks: tuple[Mark, ...]) -> tuple[float | None, str]:
    if embodiment == "arm":
        return 0.85, "at least 85% of trials over all tasks"
    if embodiment == "road":
        base, idm = _find(marks, "lane") or _find(marks, "constant"), _find(marks, "idm")
        if base and idm:
            return (base.score + idm.score) / 2, "at least halfway from lane + constant speed to IDM"
        return None, "halfway from lane + constant speed to IDM: those rows are missing"
    if embodiment == "mill":
        pi = _find(marks, "pi", "pid", "tuned-pi")
        return (pi.score, "above the tuned PI") if pi else (None, "above the tuned PI: that row is missing")
    best = max((m.score for m in marks if m.kind == "classical"), default=None)
    return best, "at least the best classical controller" if best is not None else "no classical row to compare with"
