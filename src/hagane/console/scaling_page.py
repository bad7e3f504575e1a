"""`hagane plan scaling --html`: the law, its band, the runs it was fitted to, and where it stops, as one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from hagane.console.plot import Axis, Curve, Dots, Region, draw
from hagane.console.report import render_page, write_page
from hagane.terms.amount import short_count

if TYPE_CHECKING:
    from hagane.plan.scaling_band import Interval
    from hagane.plan.scaling_runs import ScaledRun
    from hagane.plan.scaling_study import SizeRow, Study

COLOURS = ("var(--c-arm)", "var(--c-road)", "var(--c-mill)", "var(--c-4)", "var(--c-5)", "var(--c-6)")
"""One a trained size."""
STEPS = 60
"""Points of a curve."""


@dataclass(frozen=True)
class Chart:
    """A chart with its words."""

    title: str
    """What it shows."""
    note: str
    """How to read it."""
    svg: Markup
    """The drawing."""


def write_scaling_page(
    path: Path,
    heading: str,
    runs: Sequence[ScaledRun],
    found: Sequence[Study],
    rows: Sequence[SizeRow],
    tokens: float,
    said: Sequence[str],
) -> Path:
    """Write the page, whole or not at all.

    Args:
        path: the file.
        heading: what was measured.
        runs: the runs.
        found: studies of `plan.scaling_study.studies`.
        rows: sizes, as in the terminal's table.
        tokens: data tokens that sizes are compared at.
        said: what follows and what does not.

    Raises:
        StoreError: the page cannot be written.
    """
    sizes = list(dict.fromkeys(r.size for r in sorted(runs, key=lambda r: r.parameters)))
    colours = {size: COLOURS[k % len(COLOURS)] for k, size in enumerate(sizes)}
    charts: list[Chart] = []
    for k, study in enumerate(found):
        charts.append(data_chart(study, runs, colours, f"d{k}"))
        charts.append(size_chart(study, rows, tokens, f"n{k}"))
    charts += [score_chart(s, runs, colours, f"s{k}") for k, s in enumerate(found) if s.score]
    context = {"heading": heading, "said": said, "charts": charts, "colours": colours, "tokens": short_count(tokens)}
    write_page(path, render_page("scaling.html.j2", ("report.css",), (), context).encode())
    return path


def data_chart(study: Study, runs: Sequence[ScaledRun], colours: dict[str, str], name: str) -> Chart:
    """Loss over tokens seen, a curve a size: on the largest data set, and on fresh data where that is used up."""
    points, reach = study.band.points, study.band.reach()[1]
    most = float(points.unique_n.max())
    along = np.geomspace(points.tokens_n.min() / 1.3, reach * 2.5, STEPS)
    marks: list[Curve | Dots | Region] = [Region(reach, "no claim")]
    for size, colour in colours.items():
        here = [k for k, r in enumerate(runs) if r.size == size]
        n = float(points.parameters_n[here[0]])
        bands = [study.band.loss(n, float(t), max(most, float(t))) for t in along]
        marks.append(curve(along, bands, colour))
        again = [bool(points.tokens_n[k] > points.unique_n[k]) for k in here]
        titles = [f"{runs[k].name}: {points.loss_n[k]:.4f}" for k in here]
        marks.append(Dots(list(points.tokens_n[here]), list(points.loss_n[here]), colour, titles, again))
    x = Axis(float(along[0]), float(along[-1]), "data tokens seen in training", log=True)
    low, high = min(min(m.low) for m in marks if isinstance(m, Curve)), float(points.loss_n.max())
    y = Axis(max(low, 0.02 * high) / 1.1, 1.15 * high, "held-out loss", log=True)
    note = (
        f"Lines: {short_count(most)} different tokens, all different beyond; 95% band. Dots: runs; rings: runs that "
        "went through their data more than once."
    )
    alt = f"Held-out loss of {study.machine} over data tokens, by size"
    return Chart(f"{study.machine}: loss over data", note, draw(x, y, marks, alt, tick=short_count, name=name))


def size_chart(study: Study, rows: Sequence[SizeRow], tokens: float, name: str) -> Chart:
    """Loss over parameters at the same fresh tokens, as far as the largest size of all, claim or not."""
    reach, points = study.band.reach()[0], study.band.points
    along = np.geomspace(points.parameters_n.min() / 1.5, rows[-1].parameters * 1.5, STEPS)
    along = np.sort(np.append(along, reach))
    bands = [study.band.loss(float(n), tokens) for n in along]
    inside, outside = along <= reach, along >= reach
    marks: list[Curve | Dots | Region] = [
        Region(reach, "no claim"),
        curve(along[inside], [b for b, i in zip(bands, inside, strict=True) if i], "var(--ours)"),
        curve(along[outside], [b for b, i in zip(bands, outside, strict=True) if i], "var(--faint)", dashed=True),
    ]
    sizes = [float(r.parameters) for r in rows]
    losses = [float(v) for v in study.band.law.loss(np.array(sizes), tokens)]
    told = [f"{r.size}: {r.claim}" for r in rows]
    marks.append(Dots(sizes, losses, "var(--ours)", told, [r.claim != "trained" for r in rows]))
    x = Axis(float(along[0]), float(along[-1]), "parameters", log=True)
    low, high = min(b.low for b in bands), max(b.high for b in bands)
    y = Axis(max(low, high / 100) / 1.1, high * 1.1, "held-out loss", log=True)
    note = (
        f"At {short_count(tokens)} data tokens, each seen once. Dots: sizes 1m to 1t, filled where trained. Hatched: "
        "only how wide the band is."
    )
    alt = f"Predicted held-out loss of {study.machine} over parameters"
    return Chart(f"{study.machine}: loss over size", note, draw(x, y, marks, alt, tick=short_count, name=name))


def score_chart(study: Study, runs: Sequence[ScaledRun], colours: dict[str, str], name: str) -> Chart:
    """Closed-loop score over held-out loss."""
    assert study.score is not None
    machine, law = study.machine, study.score.law
    flown = [r for r in runs if machine in r.scores]
    worst = max(r.held_out[machine] for r in flown)
    along = np.linspace(0.0, 1.05 * worst, STEPS)
    drawn = np.array([s.score(along) for s in study.score.laws])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    marks: list[Curve | Dots | Region] = [
        Curve(list(along), list(law.score(along)), "var(--ours)", list(low), list(high)),
        Curve([0.0, 1.05 * worst], [law.expert, law.expert], "var(--expert)", dashed=True),
    ]
    for size, colour in colours.items():
        own = [r for r in flown if r.size == size]
        scores = [r.scores[machine] for r in own]
        told = [f"{r.name}: {v.mean:.3g} [{v.low:.3g}, {v.high:.3g}]" for r, v in zip(own, scores, strict=True)]
        marks.append(Dots([r.held_out[machine] for r in own], [v.mean for v in scores], colour, told))
    values = [r.scores[machine].mean for r in flown] + [law.expert]
    air = 0.08 * (max(values) - min(values))
    plane = Axis(0.0, 1.05 * worst, "held-out loss"), Axis(min(values) - air, max(values) + air, "closed-loop score")
    note = f"{study.score.measure}. Dashed: the expert that all learn from, the score at no error."
    svg = draw(*plane, marks, f"Closed-loop score of {machine} over held-out loss", tick=lambda v: f"{v:g}", name=name)
    return Chart(f"{machine}: score over loss", note, svg)


def curve(along: np.ndarray, bands: Sequence[Interval], colour: str, *, dashed: bool = False) -> Curve:
    """A curve of intervals."""
    middle, low, high = ([getattr(b, end) for b in bands] for end in ("middle", "low", "high"))
    return Curve([float(v) for v in along], middle, colour, low, high, dashed)
