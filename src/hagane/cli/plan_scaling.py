"""`hagane plan scaling`: what trained sizes and data amounts say of larger ones, and where they stop saying it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from hagane.cli.table import print_table
from hagane.terms import ConfigError
from hagane.terms.amount import short_count

if TYPE_CHECKING:
    from hagane.plan.scaling_band import Interval
    from hagane.plan.scaling_runs import ScaledRun
    from hagane.plan.scaling_study import SizeRow, Study


@dataclass(frozen=True)
class Scaling:
    """Fit loss and closed-loop score over sizes and amounts of data that were really trained.

    Says how many tokens of machine data a size can use, with a band over runs and seeds, and where extrapolation ends:
    beyond 10 times the largest size or the most tokens trained, numbers are printed but nothing is claimed.
    """

    runs: Annotated[Path, tyro.conf.Positional]
    """Measured runs: the JSON lines of `make bench-scaling`."""
    tokens: str = ""
    """Data tokens, each seen once, that sizes are compared at: 500k, 2m; empty takes the most that any run saw."""
    active: bool = False
    """Count the parameters that a token uses, instead of all."""
    form: Literal["auto", "repeats", "diversity"] = "auto"
    """What repeated data is worth: as found on text (repeats), or a price for all that was not seen (diversity); auto
    takes the one that says more of runs it was fitted without."""
    draws: int = 300
    """Bootstrap repeats."""
    html: Path | None = None
    """Write the charts as one self-contained page."""


def main(argv: list[str]) -> int:
    """Run `hagane plan scaling`.

    Raises:
        HaganeError: runs that cannot be read, or that are too few or too alike for a law.
    """
    o = tyro.cli(Scaling, args=argv, prog="hagane plan scaling")
    from hagane.plan.scaling_runs import read_runs
    from hagane.plan.scaling_study import size_rows, studies
    from hagane.plan.tokens import parse_amount

    if o.draws < 20:
        raise ConfigError(f"{o.draws} repeats are too few for a band", where="--draws", next_step="take at least 20")
    runs = read_runs(o.runs)
    found = studies(runs, form=None if o.form == "auto" else o.form, active=o.active, draws=o.draws)
    tokens = parse_amount(o.tokens, "--tokens") if o.tokens else float(found[0].band.points.tokens_n.max())
    rows = size_rows(found, parameters_of_sizes(runs, o.active), tokens)
    print(heading(runs, o.active), end="\n\n")
    print_table(law_table(found))
    print(f"\nAt {short_count(tokens)} data tokens, each seen once; 95% bands in brackets:\n")
    print_table(size_table(rows, found[0]))
    print()
    print("\n".join(sentences(found, rows, tokens)))
    if o.html:
        from hagane.console.scaling_page import write_scaling_page

        said = sentences(found, rows, tokens)
        page = write_scaling_page(o.html, heading(runs, o.active), runs, found, rows, tokens, said)
        print(f"\ncharts: {page}")
    return 0


def parameters_of_sizes(runs: Sequence[ScaledRun], active: bool) -> dict[str, int]:
    """Parameters of every size: of those trained as their runs say, of the others with the demo's machines."""
    from hagane.cli.plan_size import own_worlds
    from hagane.model import SIZES, make_config
    from hagane.plan.count import closed_form

    known = {r.size: r.active if active else r.parameters for r in runs}
    for name in (n for n in SIZES if n not in known):
        counted = closed_form(make_config(name, own_worlds()))
        known[name] = counted.active if active else counted.total
    return {name: known[name] for name in SIZES} | {n: v for n, v in known.items() if n not in SIZES}


def heading(runs: Sequence[ScaledRun], active: bool) -> str:
    """What was measured, in one sentence."""
    sizes = ", ".join(dict.fromkeys(r.size for r in sorted(runs, key=lambda r: r.parameters)))
    seen, unique = span([r.tokens for r in runs]), span([r.unique_tokens for r in runs])
    hours = sum(r.cpu_s for r in runs) / 3600
    kind = "active" if active else "all"
    return (
        f"{len(runs)} runs of {sizes} ({kind} parameters counted), {seen} data tokens seen, {unique} different ones, "
        f"{hours:.1f} CPU hours of training"
    )


def span(counts: Sequence[int]) -> str:
    """The least and the most of some counts."""
    return f"{short_count(min(counts))} to {short_count(max(counts))}"


def law_table(found: Sequence[Study]) -> list[list[str]]:
    """Exponents by machine, and how far runs lie from the law."""
    words = {"alpha": "alpha (parameters)", "beta": "beta (data seen)", "gamma": "gamma (different data)"}
    words["repeats"] = "worth of repeats R"
    fields = fields_of(found[0])
    head = ["loss of", "floor E", *(words[f] for f in fields), "runs off the law", "seeds differ by"]
    rows = [[*head, "longest runs foretold"]]
    for s in found:
        if s.tried:
            out, said = s.tried
            inside = sum(i.low <= x <= i.high for i, x in zip(said, out.loss_n, strict=True))
            worst = max(abs(i.middle / x - 1) for i, x in zip(said, out.loss_n, strict=True))
            foretold = f"{inside} of {len(said)} in the band, worst {worst:.0%} off"
        else:
            foretold = "too few runs to try"
        cells = [number_of(s, field) for field in ("floor", *fields)]
        spread = f"{s.seed_spread:.1%}" if s.seed_spread else "not measured"
        rows.append([s.machine, *cells, f"{s.band.residual:.1%}", spread, foretold])
    return rows


def fields_of(study: Study) -> tuple[str, str, str]:
    """Numbers of the law's form beside its floor."""
    return "alpha", "beta", "repeats" if study.band.fit.form == "repeats" else "gamma"


def number_of(study: Study, field: str) -> str:
    """A number of the law with its band, or that the runs leave it open."""
    from hagane.plan.scaling_study import free_within

    found = study.band.of(lambda law: float(getattr(law, field)))
    if field != "floor" and not free_within(found, field, study.band.fit.form):
        return f"open: {interval(found)}"
    return interval(found)


def size_table(rows: Sequence[SizeRow], first: Study) -> list[list[str]]:
    """Sizes with loss, score, the gain of doubling and the tokens a size can use."""
    machines = list(rows[0].score)
    head = ["size", "parameters", "", "loss", *(f"score {m}" for m in machines)]
    out = [[*head, "twice the size takes away", "tokens it can use"]]
    for r in rows:
        scores = [interval(r.score[m]) for m in machines]
        gains = f"{r.grows.middle:.1%} [{r.grows.low:.1%}, {r.grows.high:.1%}]"
        out.append([r.size, short_count(r.parameters), r.claim, interval(r.loss), *scores, gains, usable(r, first)])
    return out


def usable(row: SizeRow, study: Study) -> str:
    """Tokens a size can use, cut where no claim is made."""
    if row.claim == "no claim":
        return "no claim"
    most = study.band.reach()[1]
    return f"{capped(row.can_use.middle, most)} [{capped(row.can_use.low, most)}, {capped(row.can_use.high, most)}]"


def capped(value: float, most: float) -> str:
    """A count, or that it lies beyond what is claimed."""
    return short_count(value) if value <= most else f"> {short_count(most)}"


def sentences(found: Sequence[Study], rows: Sequence[SizeRow], tokens: float) -> list[str]:
    """What follows, and what does not."""
    from hagane.plan.scaling_study import enough_parameters

    first = found[0]
    most_parameters, most_tokens = first.band.reach()
    enough = enough_parameters(first, tokens)
    size, data, at = short_count(most_parameters), short_count(most_tokens), short_count(tokens)
    forms = [f'{f.left_out:.1%} in the form "{f.form}"' for f in first.forms]
    said = [
        f"A run lies {' and '.join(forms)} from a law that was fitted without it. Taken: {first.band.fit.form}.",
        f"Extrapolation ends at {size} parameters and {data} data tokens: 10 times what was trained. Beyond, the table "
        "shows how wide the band is and claims nothing.",
        f"At {at} tokens, each seen once, twice the parameters take less off the loss than seeds differ "
        f"({first.noise:.1%}) from this size on: {where(enough, first)}.",
    ]
    said += [data_or_size(r, first, tokens) for r in [r for r in rows if r.claim == "trained"][-1:]]
    if rows[-1].claim == "no claim":
        said.append(about_last(rows[-1], first))
    named = {"alpha": "what parameters are worth", "beta": "what longer training is worth"}
    named |= {"repeats": "what repeats are worth", "gamma": "what different data is worth"}
    for field in fields_of(first):
        words = named[field]
        undecided = [s.machine for s in found if number_of(s, field).startswith("open")]
        if undecided:
            said.append(f"These runs leave open {words} ({field}) on: {', '.join(undecided)}.")
    poor = [s.machine for s in found if s.score and s.score.explained < 0.5]
    if poor:
        said.append(f"Loss explains less than half of the scores' variance on: {', '.join(poor)}.")
    return said


def data_or_size(row: SizeRow, study: Study, tokens: float) -> str:
    """What the largest trained size gains from twice the data, and from twice the size."""
    data = study.band.of(lambda law: law.gain_of_doubling(row.parameters, tokens)[1])
    by_data, by_size = (f"{g.middle:.1%} [{g.low:.1%}, {g.high:.1%}]" for g in (data, row.grows))
    return f"There twice the data takes {by_data} off the loss of {row.size}, twice the size {by_size}."


def about_last(row: SizeRow, study: Study) -> str:
    """Why the largest size is no prediction."""
    losses = study.band.points.loss_n
    times, range_seen = row.parameters / float(study.band.points.parameters_n.max()), losses.max() / losses.min()
    band = f"{row.size} is {times:,.0f} times the largest size trained; its band is {row.loss.fold:.2f}-fold"
    if row.loss.fold >= range_seen:
        return f"{band}, as wide as all the losses that were measured ({range_seen:.2f}-fold): no prediction."
    return (
        f"{band}, narrower than the losses that were measured ({range_seen:.2f}-fold) only because the form of the "
        "law is taken for granted over that distance: no prediction either."
    )


def where(enough: Interval, study: Study) -> str:
    """From which size on more parameters are not worth it, in words."""
    low, high = float(study.band.points.parameters_n.min()), study.band.reach()[0]

    def words(n: float) -> str:
        if low < n <= high:
            return short_count(n)
        return "the smallest trained" if n <= low else f"none up to {short_count(high)}"

    return f"{words(enough.middle)} (95%: {words(enough.low)} to {words(enough.high)})"


def interval(i: Interval) -> str:
    """A number and its band, three significant digits."""
    middle, low, high = (0.0 if 0 < x < 5e-4 else x for x in (i.middle, i.low, i.high))
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"
