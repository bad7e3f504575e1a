"""diff: machine, statistics from sketches, shared episodes, tasks, findings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.catalog.diff import compare
from hagane.catalog.drift import drifts, ks_distance
from hagane.intake.lerobot_sketch import merge, sketch_rows
from hagane.terms import Channel, Refused, StoreError
from tests.catalog_fixture import ARM, ROAD, Home, episodes, make_home


def exact_ks(a: np.ndarray, b: np.ndarray) -> float:
    at = np.union1d(a, b)
    fa, fb = (np.searchsorted(np.sort(x), at, side="right") / len(x) for x in (a, b))
    return float(np.abs(fa - fb).max())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), shift=st.floats(-3, 3), scale=st.floats(0.2, 5), whole=st.booleans())
def test_distance_from_sketches_is_the_exact_one(seed: int, shift: float, scale: float, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=5000), shift + scale * rng.normal(size=4000)
    if whole:
        a, b = a.round(), b.round()  # many equal values
    parts = [sketch_rows(x[:, None]) for x in np.array_split(a, 7)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merge(merged, part)
    assert ks_distance(merged, sketch_rows(b[:, None]), 0) == pytest.approx(exact_ks(a, b), abs=0.02)
    assert ks_distance(merged, merged, 0) == 0.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: np.rad2deg(x), "rad and deg"),
        (lambda x: x / 3.6, "m/s and km/h"),
        (lambda x: x * 1000, "thousandth"),
        (lambda x: x + 273.15, "K and Cel"),
        (lambda x: -x, "sign is turned"),
        (lambda x: 0 * x, "constant in the second"),
        (lambda x: x + 50, "no value in the first"),
    ],
)
def test_hints_say_what_may_have_happened(change: object, words: str) -> None:
    rng = np.random.default_rng(0)
    a = rng.gamma(2.0, size=(4000, 1)) - 0.5
    b = rng.gamma(2.0, size=(4000, 1)) - 0.5
    channel = Channel("speed", unit=("m/s",))
    found = drifts(channel, sketch_rows(a), sketch_rows(change(b)))[0]  # type: ignore[operator]
    assert words in found.hint and found.distance > 0.1, found
    assert drifts(channel, sketch_rows(a), sketch_rows(b))[0].hint == ""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = make_home(tmp_path_factory.mktemp("site"))
    catalog = made.catalog()
    bent = replace(ARM, rate_hz=10.0, observe=(replace(ARM.observe[0], unit=("deg",), source=("q",)), ARM.observe[1]))
    more = replace(ARM, observe=(*ARM.observe, Channel("force", unit=("N",))), act=ARM.act[::-1])
    terms = made.contract(ARM, "one", "again", "part", "bent", "more")
    catalog.add("one", ARM, terms, episodes(ARM, 8))
    catalog.add("again", ARM, terms, episodes(ARM, 8))
    catalog.add("part", ARM, terms, episodes(ARM, 6, first=4))
    catalog.add("bent", bent, terms, episodes(ARM, 3))
    catalog.add("more", more, terms, episodes(ARM, 3))
    catalog.add("road", ROAD, made.contract(ROAD, "road", purposes=("anchor",)), episodes(ROAD, 2))
    return made


def test_the_same_under_another_name(home: Home) -> None:
    d = compare(home.catalog(), "one", "again")
    assert d.same and not d.facts and not d.machine and d.shared.content == 8
    assert all(x.distance == 0 and x.hint == "" for x in d.drift) and len(d.drift) == 6


def test_episodes_tasks_and_findings_are_counted(home: Home) -> None:
    d = compare(home.catalog(), "one", "part")
    assert not d.same and not d.machine
    assert (d.shared.content, d.shared.sources) == (4, 1)
    assert (d.shared.first_from_them, d.shared.second_from_them) == (8, 6)
    assert d.tasks == (("task 0", 4, 3), ("task 1", 4, 3)) and d.findings == (("stuck", 2, 2),)
    assert {c.what for c in d.facts} == {"episodes", "control steps", "hours"}


def test_machines_are_compared_field_by_field(home: Home) -> None:
    d = compare(home.catalog(), "one", "bent")
    told = {c.what: (c.first, c.second) for c in d.machine}
    assert told == {
        "rate_hz": ("20.0", "10.0"),
        "observe joints: unit": ("rad", "deg"),
        "observe joints: source": ("none", "q"),
    }
    more = {c.what: (c.first, c.second) for c in compare(home.catalog(), "one", "more").machine}
    assert more == {"observe force": ("absent", "present"), "order of act": ("hand, grip", "grip, hand")}


def test_both_contracts_are_asked(home: Home) -> None:
    with pytest.raises(Refused, match="'view' is not granted"):
        compare(home.catalog(), "one", "road")
    with pytest.raises(StoreError, match="no data set 'nope'"):
        compare(home.catalog(), "one", "nope")


def test_an_absent_channel_is_no_distance(tmp_path: Path) -> None:
    got = drifts(Channel("u"), sketch_rows(np.ones((3, 1))), sketch_rows(np.full((3, 1), np.nan)))[0]
    assert np.isnan(got.distance) and got.hint == "the second set has no value"
