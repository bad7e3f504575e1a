"""Tennessee Eastman records: the real files, the transposed one, what their names say, bad input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.cli import main
from hagane.intake import read_logs
from hagane.intake.detect import format_of
from hagane.intake.tep import NAMES, UNITS
from hagane.terms import Channel, ConfigError, Embodiment, Episode, HaganeError, LogError, load_toml
from tests.conftest import shared_data

EXAMPLE = Path(__file__).parents[1] / "examples" / "tennessee-eastman.toml"
PLANT = Embodiment(
    "te",
    "plant",
    "member-chemicals",
    1 / 180,
    4,
    observe=(
        Channel("pressure", unit=("kPa",), role="pv", source=("XMEAS(7)",)),
        Channel("product", shape=(2,), unit=("mol%",), role="pv", rate_hz=1 / 900, source=("XMEAS(40)", "XMEAS(41)")),
    ),
    act=(Channel("cooling", unit=("%",), role="mv", source=("XMV(10)",)),),
)


def matrix(rows: int) -> np.ndarray:
    """[rows, 52] made readings, analyses held as the real files hold them."""
    values = np.random.default_rng(0).uniform(10.0, 90.0, (rows, 52))
    values[:, 36:41] = values[np.arange(rows) // 5 * 5, 36:41]
    return np.round(values, 3)


def write(path: Path, values: np.ndarray) -> Path:
    np.savetxt(path, values, fmt="%16.7e")
    return path


def one(path: Path, embodiment: Embodiment = PLANT, **options: object) -> Episode:
    (episode,) = read_logs(path, embodiment, **options)
    return episode


def notes(episode: Episode) -> list[str]:
    return [f.detail for f in episode.findings if f.kind == "note"]


@pytest.mark.parametrize(("rows", "name"), [(60, "d00"), (52, "d00"), (40, "run")])
def test_a_matrix_and_its_transpose_are_one_log(tmp_path: Path, rows: int, name: str) -> None:
    values = matrix(rows)
    episode = one(write(tmp_path / f"{name}.dat", values))
    assert notes(episode) == [] and episode.id == name
    pressure, product = episode.streams["pressure"], episode.streams["product"]
    assert (pressure.times_ns // 10**9).tolist() == [180 * k for k in range(rows)]
    assert pressure.values[:, 0].tolist() == values[:, 6].tolist()
    assert episode.streams["cooling"].values[:, 0].tolist() == values[:, 50].tolist()
    assert product.values.tolist() == values[::5, 39:41].tolist()  # a held analysis is one sample
    if rows != 52:  # 52 x 52 reads as it stands
        turned = one(write(tmp_path / f"{name}.dat", values.T))
        assert notes(turned) == [f"the file is transposed (52 rows of {rows} columns): read by columns"]
        assert np.array_equal(turned.streams["pressure"].values, pressure.values)


def test_the_columns_are_named_and_have_the_units_of_the_paper(tmp_path: Path) -> None:
    assert (len(NAMES), len(UNITS), NAMES[0], NAMES[40], NAMES[41], NAMES[51]) == (
        *(52, 52),
        *("XMEAS(1)", "XMEAS(41)", "XMV(1)", "XMV(11)"),
    )
    path = write(tmp_path / "d03.dat", matrix(60))
    wrong = Embodiment("te", "plant", "m", 1 / 180, 4, PLANT.observe[:1], (Channel("x", source=("XMV(12)",)),))
    with pytest.raises(ConfigError, match=r"no column 'XMV\(12\)'(?s:.*)did you mean XMV"):
        one(path, wrong)
    celsius = Channel("pressure", unit=("Cel",), role="pv", source=("xmeas(7)",))
    episode = one(path, Embodiment("te", "plant", "m", 1 / 180, 4, (celsius,), PLANT.act))
    assert [f.kind for f in episode.findings] == ["note", "unit-mismatch"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("d00", []),
        ("d00_te", []),
        ("d06_te", ["its name says IDV(6): A feed loss, step; the data set introduces it after its 160th row (8 h)"]),
        ("d14", ["IDV(14): reactor cooling water valve, sticking; the data set introduces it from its first row"]),
        ("d21_te", ["fault 21: valve of stream 4, held"]),
        ("d99", []),
        ("run-7", []),
    ],
)
def test_what_a_name_says_is_said_and_no_more(tmp_path: Path, name: str, words: Sequence[str]) -> None:
    episode = one(write(tmp_path / f"{name}.dat", matrix(60)))
    assert len(notes(episode)) == len(words) and all(w in n for w, n in zip(words, notes(episode), strict=True))
    assert (episode.task, episode.outcome) == ("", "")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t[:-30], "truncated file: the last row has"),
        (lambda t: t[:-3], "truncated file: no line break"),
        (lambda t: t.replace("\n", " 1.0\n", 1), r"a row of 52 numbers after rows of 53"),
        (lambda t: "\n".join(line[:-16] for line in t.splitlines()) + "\n", "60 rows of 51 numbers: neither 52"),
        (lambda t: t.replace("e+01", "e+e1", 1), "a word is no number"),
        (lambda t: t.rstrip("\n") + "0" * 100_000 + "\n", r"a word of 1000\d\d characters is no number"),
    ],
)
def test_bad_files_get_one_message(tmp_path: Path, edit: object, words: str) -> None:
    path = write(tmp_path / "d01.dat", matrix(60))
    path.write_text(edit(path.read_text()))  # type: ignore[operator]
    with pytest.raises(LogError, match=words):
        one(path)


@settings(max_examples=80, deadline=None)
@given(at=st.floats(0, 1), keep=st.booleans(), turned=st.booleans())
def test_a_file_cut_anywhere_is_refused_or_gives_true_rows(
    tmp_path_factory: pytest.TempPathFactory, at: float, keep: bool, turned: bool
) -> None:
    values = matrix(60)
    path = write(tmp_path_factory.getbasetemp() / "cut.dat", values.T if turned else values)
    data = path.read_bytes()
    path.write_bytes(data[: int(at * (len(data) - 1))])
    try:
        for episode in read_logs(path, PLANT, keep_whole=keep):
            pressure = episode.streams["pressure"]
            assert not turned and pressure.values[:, 0].tolist() == values[: len(pressure), 6].tolist()
    except HaganeError as e:
        assert str(path) in e.where


def test_the_real_files_come_in_by_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared_data("plant", "tennessee_eastman")
    assert main(["intake", str(folder), "--embodiment", str(EXAMPLE), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"{len(list(folder.glob('*.dat')))} episodes" in out
    assert "d00 * at 0.000 s: note, the file is transposed (52 rows of 500 columns)" in out
    assert "out-of-range" not in out and "unit-mismatch" not in out


def test_the_real_files_hold_what_their_names_say() -> None:
    """d04 and d05 are one run up to row 160, where their disturbances begin; d06 stops 13.9 h in: its plant trips."""
    machine = load_toml(EXAMPLE, Embodiment)
    four, five, six = (one(shared_data("plant", "tennessee_eastman", f"d0{k}_te.dat"), machine) for k in (4, 5, 6))
    assert format_of(shared_data("plant", "tennessee_eastman", "d00.dat")) == "tep"
    for name in ("feed", "reactor", "valves"):
        same = (four.streams[name].values == five.streams[name].values).all(1)
        assert same[:160].all() and not same[160:].all()
    assert (four.streams["valves"].values == five.streams["valves"].values).all(1).argmin() == 160
    assert len(six.streams["product_analysis"]) == 192 and len(six.streams["purge_analysis"]) == 480
    feed = six.streams["feed"]
    assert feed.values[:160, 0].mean() > 0.2 and abs(feed.values[200:278, 0].mean()) < 0.01  # the A feed is lost
    stopped = [f for f in six.findings if f.kind == "stuck"]
    assert {f.time_ns // 10**9 for f in stopped} == {50_040} and six.streams["reactor"].values[:, 0].max() == 3000.0
