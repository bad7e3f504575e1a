"""The benchmark of rights: its parts run, and what does not do its work is not timed. No timing is asserted."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hagane.terms import Decision, HaganeError
from tests.jail_fixture import why_not

ROOT = Path(__file__).parents[1]
needs_jail = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """Modules of bench/rights by name."""
    sys.path.insert(0, str(ROOT))
    try:
        names = ("keys", "ledger", "loading", "measured", "permit", "records", "start", "training", "__main__")
        yield SimpleNamespace(**{n: importlib.import_module(f"bench.rights.{n}") for n in names})
    finally:
        sys.path.remove(str(ROOT))


@pytest.mark.parametrize(
    ("limit", "ends", "verdict"),
    [
        (None, (1.0, 1.2), ""),
        (1.3, (1.0, 1.2), "holds"),
        (1.15, (1.0, 1.2), "open"),
        (0.9, (1.0, 1.2), "misses"),
        (1.0, (None, None), "misses"),
        (1.1, (None, None), "holds"),
    ],
)
def test_a_figure_is_judged_by_its_whole_interval(
    bench: Any, limit: float, ends: tuple[float, float], verdict: str
) -> None:
    figure = bench.measured.Figure("w", "x", 1.1, "how", limit, *ends)
    assert figure.verdict == verdict and f"| {verdict} |" in figure.row()


def test_what_could_not_be_measured_does_not_hold(bench: Any) -> None:
    figure = bench.measured.Figure("w", "ms", None, "no interpreter", 100.0)
    assert figure.verdict == "" and "not measured" in figure.row() and "no interpreter" in figure.row()


def test_the_interval_is_that_of_student(bench: Any) -> None:
    # scipy.stats.t.interval(0.95, 3, 2.5, sem): sem = sqrt(5/3) / 2
    assert bench.measured.mean_of([1, 2, 3, 4]) == pytest.approx((2.5, 0.4457, 4.5543), abs=1e-3)
    middle, low, high = bench.measured.ratio([(1, 2), (2, 4), (3, 6.3)])
    assert low < 2 < middle < high and middle == pytest.approx((2 * 2 * 2.1) ** (1 / 3))
    assert bench.measured.mean_of([1.0])[1:] == (-float("inf"), float("inf"))


def test_a_command_that_fails_is_not_timed(bench: Any, tmp_path: Path) -> None:
    with pytest.raises(HaganeError, match="ended with 3: no"):
        bench.measured.spend((sys.executable, "-c", "print('no'); raise SystemExit(3)"), os.environ, tmp_path)


@needs_jail
def test_cpu_of_a_command_in_a_jail_is_counted(bench: Any, tmp_path: Path) -> None:
    # a grandchild in the jail burns until it has used so much, and its parents do next to nothing
    burn = "import time\nwhile time.process_time() < 1: pass"
    inside = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}], check=True)"
    outside = f"""
import os, sys
from hagane.jail import Plan, python_env, python_reads, start
null = os.open(os.devnull, os.O_WRONLY)
with start(Plan((sys.executable, "-c", {inside!r}), python_env(), python_reads()), null, null) as jailed:
    assert jailed.wait() == 0
    jailed.release()
print("own", sum(os.times()[:2]))
"""
    spent = bench.measured.spend((sys.executable, "-c", outside), os.environ, tmp_path)
    own = float(spent.out.split()[1])
    assert spent.cpu_s >= own + 1


def test_parts_that_need_no_jail_run(bench: Any, tmp_path: Path) -> None:
    rows = [
        *bench.permit.measure(tmp_path / "permit", 2, 3),
        *bench.keys.measure(tmp_path / "keys", 3, 2),
        *bench.records.measure((300,), 2, 1 << 14),
        *bench.ledger.measure(tmp_path / "ledger", 500, 2),
    ]
    assert len(rows) == 9 and all(row.measured > 0 for row in rows)


@needs_jail
def test_starts_are_measured(bench: Any) -> None:
    rows = bench.start.measure(2)
    assert rows[0].measured > 0 and rows[0].limit == 100
    assert len(rows) == (2 if os.geteuid() == 0 else 1)


def test_a_permit_that_grants_all_is_not_timed(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench.permit, "permit", lambda *_: Decision(True, "yes"))
    with pytest.raises(HaganeError, match="judged wrongly"):
        bench.permit.measure(tmp_path / "p", 2, 1)


def test_an_erasure_that_leaves_the_key_is_not_timed(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench.keys, "erase", lambda *_: None)
    with pytest.raises(HaganeError, match="after its key was erased"):
        bench.keys.measure(tmp_path / "k", 2, 1)


def test_a_proof_of_another_ledger_is_not_timed(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench.ledger, "check_proof", lambda *_: False)
    with pytest.raises(HaganeError, match="does not lead to the ledger's root"):
        bench.ledger.measure(tmp_path / "l", 50, 1)


def test_runs_that_train_otherwise_are_not_timed(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    training = bench.training
    spent = bench.measured.Spent(1.0, 1.0, "")

    def run(folder: Path, name: str, steps: int) -> Any:
        losses = (0.5,) * (steps - 1) + (0.25 if folder.name == "jail" else 0.125,)
        return training.Run(spent, losses, 0.1)

    monkeypatch.setattr(training, "train", run)
    with pytest.raises(HaganeError, match="differ in their losses"):
        training.pairs(tmp_path, 5, 1)


def test_a_part_that_fails_is_told_and_the_others_go_on(
    bench: Any, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    good = bench.measured.Figure("w", "s", 1.0, "once")

    def bad(_: Path) -> list[Any]:
        raise HaganeError("it broke")

    monkeypatch.setattr(bench.__main__, "parts_of", lambda _: {"bad": bad, "good": lambda _: [good]})
    out = tmp_path / "results" / "found.json"
    assert bench.__main__.main(["--out", str(out)]) == 1
    found = json.loads(out.read_text("utf-8"))
    assert found["failed"] == {"bad": "it broke"} and [f["what"] for f in found["figures"]] == ["w"]
    assert "bad: it broke" in capsys.readouterr().err
    assert bench.__main__.main(["--only", "good"]) == 0
    with pytest.raises(SystemExit):
        bench.__main__.main(["--only", "nothing"])


@pytest.mark.slow
@needs_jail
def test_all_of_it_runs_in_a_tiny_size(bench: Any, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    bench.__main__.main(["--tiny", "--out", str(out)])
    found = json.loads(out.read_text("utf-8"))
    assert not found["failed"] and set(found["seconds"]) == set(bench.__main__.parts_of(SimpleNamespace(tiny=True)))
    assert sum("training" in f["what"] for f in found["figures"]) == 3
