"""The page of a data set: what is on it, that it stays small, and that nothing of the data can break out of it."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hagane.catalog.doctor import Doctor
from hagane.catalog.look import COLUMNS_SHOWN, EPISODES_PICTURED, EPISODES_SHOWN, Look, histogram
from hagane.catalog.symptoms import Diagnosis
from hagane.cli import main
from hagane.console.bars import bars
from hagane.console.dataset_page import PICTURE_BYTES, _affordable, write_dataset_page
from hagane.intake import check_episode
from hagane.intake.lerobot_sketch import sketch_rows
from hagane.terms import Channel, Embodiment, Episode, Stream
from tests.catalog_fixture import make_home
from tests.doctor_cases import PICKER, clean, cut, edit, picker
from tests.intake_cases import LINE
from tests.test_report_browser import Tab, browser, complaints, load, shoot, tab  # noqa: F401


def gathered(machine: Embodiment, episodes: list[Episode]) -> tuple[Diagnosis, Look]:
    look = Look(machine)
    doctor = Doctor(machine, watchers=[look])
    for episode in episodes:
        doctor.add(check_episode(episode, machine))
    return doctor.diagnosis("a <set>", "cd" * 32), look


def data_of(html: str) -> Any:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])  # type: ignore[index]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of a catalog with cameras and a few faults, through the verb."""
    folder = tmp_path_factory.mktemp("page")
    home = make_home(folder)
    episodes = [picker(n, encoded=False) for n in range(6)]
    episodes[0] = edit(episodes[0], "joints", lambda s: cut(s, np.r_[0:30, 55:120]))
    black = episodes[2].streams["wrist"].values.copy()
    black[10:20] = 0
    episodes[2] = edit(episodes[2], "wrist", lambda s: replace(s, values=black))
    come_in = [check_episode(e, PICKER) for e in episodes]
    home.catalog().add("picker-demo", PICKER, home.contract(PICKER, "picker-demo"), come_in)
    out = folder / "page.html"
    assert main(["catalog", "show", "picker-demo", "--html", str(out), "--home", str(folder)]) == 0
    return out


def test_what_is_on_the_page(page: Path) -> None:
    html = page.read_text("utf-8")
    for words in (
        "6 episodes of <b>picker</b>", "member-robots", "until</dt><dd>2099-12-31", "pictures are black",
        "about 25 samples, longest hole 1.300 s", "From command to response", "target.0", "Age at control time",
        "picker/000000", "success",
    ):  # fmt: skip
        assert words in html, words
    assert html.count('<img src="data:image/jpeg;base64,') == EPISODES_PICTURED * 2 * 6
    assert f"{EPISODES_PICTURED} of 6 episodes" in html and f"{EPISODES_SHOWN} of 6 episodes" in html
    assert len(re.findall(r'data-full="[0-9a-f]{64}"', html)) >= 4
    assert page.stat().st_size < 1_000_000


def test_gaps_travel_with_the_curves(page: Path) -> None:
    shown = data_of(page.read_text("utf-8"))["shown"]
    joints = shown[0]["charts"][0]
    assert joints["labels"] == ["joints.0", "joints.1", "joints.2"] and joints["unit"] == "rad"
    ((a, b),) = joints["gaps"]
    assert (a, b) == (1.45, 2.75)
    inside = [k for k, t in enumerate(joints["t"]) if a < t < b]
    assert inside and all(joints["v"][0][k] is None for k in inside)
    assert shown[1]["charts"][0]["gaps"] == []


def test_a_log_that_is_in_no_catalog(tmp_path: Path) -> None:
    found, look = gathered(LINE, clean("mill", 2))
    write_dataset_page(tmp_path / "p.html", found, look, LINE)
    html = (tmp_path / "p.html").read_text("utf-8")
    assert "no contract covers this page yet" in html and "Nothing was found." in html
    assert "&lt;set&gt;" in html and "<set>" not in html and "Pictures" not in html


def test_copies_are_listed_where_somebody_looked(tmp_path: Path) -> None:
    found, look = gathered(LINE, clean("mill", 2))
    write_dataset_page(tmp_path / "p.html", found, look, LINE, copies=[("mill/000000", "mill/000001", "is nearly")])
    assert "mill/000001: is nearly mill/000000" in (tmp_path / "p.html").read_text("utf-8")


def test_words_of_the_data_cannot_break_out(tmp_path: Path) -> None:
    nasty = "</script><script>alert(1)</script><!--"
    machine = replace(LINE, observe=(replace(LINE.observe[0], source=(nasty, "b")), *LINE.observe[1:]))
    sick = [replace(e, id=nasty + str(n), task=nasty, outcome=nasty) for n, e in enumerate(clean("mill", 2))]
    sick = [edit(e, "coating", lambda s: cut(s, np.r_[0:100, 200:600])) for e in sick]
    found, look = gathered(machine, sick)
    write_dataset_page(tmp_path / "p.html", found, look, machine)
    html = (tmp_path / "p.html").read_text("utf-8")
    assert "alert(1)</script>" not in html and html.count("<script") == 2
    assert data_of(html)["shown"][0]["charts"][0]["labels"][0] == nasty


def test_a_large_set_stays_a_small_page(tmp_path: Path) -> None:
    wide = Embodiment(
        "wide", "plant", "o", 10.0, 4, tuple(Channel(f"c{k}", shape=(9,)) for k in range(20)), (Channel("u"),)
    )

    def long(n: int) -> Episode:
        rng = np.random.default_rng(n)
        t = wide.step_ns * np.arange(20_000, dtype=np.int64)
        ones = np.ones(len(t), bool)
        streams = {c.name: Stream(t, rng.normal(size=(len(t), *c.shape)).astype("f4"), ones) for c in wide.channels()}
        return Episode(f"wide/{n}", "wide", streams)

    look = Look(wide)
    doctor = Doctor(wide, watchers=[look])
    for n in range(5):
        doctor.add(long(n))
    write_dataset_page(tmp_path / "p.html", doctor.diagnosis("wide"), look, wide)
    html = (tmp_path / "p.html").read_text("utf-8")
    assert len(html) < 3_000_000 and f"{9 - COLUMNS_SHOWN} columns are not drawn" in html
    assert max(len(c["t"]) for s in data_of(html)["shown"] for c in s["charts"]) <= 600


def test_pictures_keep_to_their_budget() -> None:
    _, look = gathered(PICKER, [picker(0)])
    big = [replace(s, pictures=tuple((t, b"x" * 400_000) for t, _ in s.pictures)) for s in look.sheets()]
    assert sum(len(p) for s in _affordable(big) for _, p in s.pictures) <= PICTURE_BYTES


def test_peaks_survive_thinning_and_episodes_are_spread() -> None:
    episodes = clean("mill", 20)
    values = np.where(np.arange(600)[:, None] == 333, 249.0, 100.0)
    spike = edit(episodes[0], "speed", lambda s: replace(s, values=values))
    look = Look(LINE)
    look._points = 60
    doctor = Doctor(LINE, watchers=[look])
    for episode in [spike, *episodes[1:]]:
        doctor.add(episode)
    shown = look.shown()
    assert shown[0].episode == "mill/000000" and len(shown) == EPISODES_SHOWN
    assert int(shown[-1].episode[-6:]) >= 12
    (speed,) = [c for c in shown[0].curves if c.stream == "speed"]
    assert np.nanmax(speed.values) == 249.0 and len(speed.times_s) <= 60 and (np.diff(speed.times_s) >= 0).all()


def test_histograms_are_those_of_the_values() -> None:
    values = np.random.default_rng(0).normal(size=(50_000, 2))
    sketch = sketch_rows(values)
    edges, shares = histogram(sketch, 1, 20)
    exact, _ = np.histogram(values[:, 1].clip(edges[0], edges[-1]), edges)
    assert abs(shares - exact / len(values)).max() < 0.01 and abs(shares.sum() - 1) < 1e-9
    assert len(histogram(sketch_rows(np.zeros((0, 1))), 0, 5)[0]) == 0
    one_value, all_of_it = histogram(sketch_rows(np.full((50, 1), 3.0)), 0, 5)
    assert all_of_it.max() == 1 and one_value[0] < 3 < one_value[-1]
    assert "no sample" in bars(np.zeros(0), np.zeros(0), label="x") and "&lt;" in bars(edges, shares, label="<")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (400, False), (400, True)])
def test_in_a_browser(tab: Tab, page: Path, width: int, dark: bool) -> None:  # noqa: F811
    load(tab, page, width, dark=dark)
    assert complaints(tab, page) == []
    assert tab.value("document.documentElement.scrollWidth") <= width
    charts = tab.value("document.querySelectorAll('.run-of[open] .uplot').length")
    assert charts == tab.value("document.querySelectorAll('.run-of[open] .plot').length") > 0
    # the other episodes are drawn when they are opened, and again after the window changed
    tab.value("document.querySelectorAll('.run-of')[1].open = true")
    tab.wait("document.querySelectorAll('.run-of[open] .uplot').length === 2 * " + str(charts))
    assert tab.value("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    if folder := os.environ.get("HAGANE_SHOTS"):
        shoot(tab, Path(folder) / f"dataset-{width}-{'dark' if dark else 'light'}.png", width)
