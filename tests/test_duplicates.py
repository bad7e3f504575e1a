"""Copies: planted ones of each kind are found in runs of the demo's machines, and different runs are never taken
for copies. Noise levels are parts of each column's standard deviation over the set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hagane.catalog.duplicates import Copy, catalog_signatures, copy_groups, find_copies
from hagane.catalog.overlay import overlay
from hagane.catalog.signature import POINTS, Signature, streams_digest
from hagane.terms import Channel, Embodiment, Episode, Refused
from tests.catalog_fixture import ARM, ROAD, episode, episodes, make_home
from tests.curation_fixture import Change, demos, noisy, reach, resampled, shifted, signatures, stats_of, trimmed

RNG = np.random.default_rng(5)
PLANTED = 30


def together(*changes: Change) -> Change:
    def change(e: Episode) -> Episode:
        for one in changes:
            e = one(e)
        return e

    return change


def planted(world: str, count: int, kind: str) -> tuple[list[Signature], int]:
    """Signatures of different runs, and behind them PLANTED altered copies in another data set."""
    machine, runs = demos(world, count)
    stats = stats_of(machine, runs)
    changes = {
        "noise 1%": noisy(0.01, stats, RNG),
        "noise 2%": noisy(0.02, stats, RNG),
        "noise 5%": noisy(0.05, stats, RNG),
        "rate x 0.7": resampled(0.7),
        "rate x 1.5": resampled(1.5),
        "front cut 10%": trimmed(0.1, 0),
        "both ends cut 20%": trimmed(0.12, 0.08),
        "clock moved": shifted(86_400 * 10**9 + 7),
        "all at once": together(noisy(0.02, stats, RNG), trimmed(0.08, 0.04), resampled(0.8), shifted(10**9)),
    }
    chosen = np.random.default_rng(3).choice(len(runs), PLANTED, replace=False)
    copies = tuple(changes[kind](runs[k]) for k in chosen)
    return signatures(machine, runs, stats) + signatures(machine, copies, stats, "b"), PLANTED


def rates(copies: Sequence[Copy], planted: int) -> tuple[float, float]:
    """Recall and precision."""
    right = sum(c.first[1] == c.second[1] for c in copies)
    return right / planted, right / max(len(copies), 1)


@pytest.mark.parametrize("world", ["mill", "road"])
@pytest.mark.parametrize(
    ("kind", "recall"),
    [
        ("noise 1%", 1.0),
        ("noise 2%", 1.0),
        ("noise 5%", 0.9),
        ("rate x 0.7", 0.9),
        ("rate x 1.5", 0.9),
        ("front cut 10%", 0.9),
        ("both ends cut 20%", 0.9),
        ("clock moved", 1.0),
        ("all at once", 0.9),
    ],
)
def test_planted_copies_are_found_and_nothing_else(world: str, kind: str, recall: float) -> None:
    found = find_copies((made := planted(world, 100, kind))[0])
    got, precision = rates(found, made[1])
    assert got >= recall and precision == 1.0, f"recall {got:.2f}, precision {precision:.2f}"
    assert all(c.kind == ("same" if kind == "clock moved" else "near") for c in found)


@pytest.mark.parametrize(("world", "count"), [("mill", 200), ("road", 100)])
def test_different_runs_of_one_machine_are_no_copies(world: str, count: int) -> None:
    machine, runs = demos(world, count)
    assert find_copies(signatures(machine, runs, stats_of(machine, runs))) == []


def test_different_runs_of_the_arm_are_no_copies() -> None:
    pytest.importorskip("metaworld")
    machine, runs = demos("arm", 60)
    assert find_copies(signatures(machine, runs, stats_of(machine, runs))) == []


def test_cut_and_clock_are_told() -> None:
    machine, runs = demos("mill", 100)
    stats = stats_of(machine, runs)
    whole, cut = signatures(machine, (runs[0], trimmed(0.1, 0)(runs[0])), stats)
    laid = overlay(whole, cut)
    assert laid.lag_s == pytest.approx(0.1 * whole.seconds, rel=0.1) and laid.overlap == pytest.approx(0.9, abs=0.02)


def test_the_same_run_under_another_name_and_clock_is_the_same() -> None:
    one = episode(ARM, 0)
    other = replace(shifted(5)(one), id="else", task="else", digest="cd" * 32, findings=())
    assert streams_digest(one) == streams_digest(other)
    assert streams_digest(one) != streams_digest(episode(ARM, 1))
    bent = replace(one, streams={**one.streams, "grip": replace(one.streams["grip"], unit=("mm",))})
    assert streams_digest(one) != streams_digest(bent)


def test_machines_are_never_compared_with_each_other() -> None:
    """The same curves under other columns or units are no copies."""
    machine = Embodiment("m", "robot", "o", 50.0, 8, (Channel("q", unit=("rad",)),), (Channel("u"),))
    other = replace(machine, observe=(Channel("q", unit=("deg",)),))
    run = reach(machine, 0)
    stats = stats_of(machine, (run, reach(machine, 1)))
    first = signatures(machine, (run,), stats)
    moved = noisy(0.001, stats, RNG)(run)
    assert len(find_copies(first + signatures(machine, (moved,), stats, "b"))) == 1
    assert find_copies(first + signatures(other, (moved,), stats, "b")) == []


def test_still_and_tiny_episodes_do_not_break_it() -> None:
    machine = Embodiment("m", "robot", "o", 50.0, 8, (Channel("q"),), (Channel("u"),))
    runs = [reach(machine, k, steps=n) for k, n in enumerate((1, 2, 3, 60, 500))]
    still = replace(runs[3], streams={n: replace(s, values=0 * s.values) for n, s in runs[3].streams.items()})
    stats = stats_of(machine, tuple(runs))
    made = signatures(machine, (*runs, still, replace(still, id="again")), stats)
    assert [(c.first[1], c.second[1], c.kind) for c in find_copies(made)] == [(still.id, "again", "same")]
    assert all(s.curve_PD.shape == (POINTS, 2) for s in made) and find_copies(made[:1]) == []


def test_wide_machines_are_compared_through_mixtures() -> None:
    machine = Embodiment("m", "plant", "o", 10.0, 8, (Channel("tags", shape=(300,)),), (Channel("u"),))
    runs = tuple(reach(machine, k) for k in range(20))
    stats = stats_of(machine, runs)
    copies = tuple(noisy(0.02, stats, RNG)(r) for r in runs[:5])
    found = find_copies(signatures(machine, runs, stats) + signatures(machine, copies, stats, "b"))
    assert rates(found, 5) == (1.0, 1.0)


def test_groups_are_copies_of_copies() -> None:
    a, b, c, d, e = (("x", str(k)) for k in range(5))
    groups = copy_groups([Copy(a, b, "same"), Copy(b, c, "near"), Copy(d, e, "near")])
    assert sorted(map(sorted, groups)) == [[a, b, c], [d, e]]


def test_a_catalog_is_searched_across_sets_under_its_contracts(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    catalog = home.catalog()
    terms = home.contract(ARM, "arm-a", "arm-b")
    runs = list(episodes(ARM, 8))
    catalog.add("arm-a", ARM, terms, runs[:5])
    catalog.add("arm-b", ARM, terms, [replace(runs[2], id="arm/copy/000000"), *runs[5:]])
    catalog.add("road-demo", ROAD, home.contract(ROAD, purposes=("anchor",)), episodes(ROAD, 2))
    found = find_copies(catalog_signatures(catalog, ["arm-a", "arm-b"]))
    assert [(c.first, c.second, c.kind) for c in found] == [
        (("arm-a", "arm/case/000002"), ("arm-b", "arm/copy/000000"), "same")
    ]
    with pytest.raises(Refused, match="'view' is not granted"):
        catalog_signatures(catalog, ["arm-a", "road-demo"])
