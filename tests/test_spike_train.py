"""The spike guard in a real run: bad batches are planted in real data, on one rank and on two."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hagane.catalog import Loader
from hagane.cli.site import open_catalog
from hagane.engine import Layout, StepConfig
from hagane.model import latest
from hagane.terms import Batch, TrainingError, digest_file
from hagane.train import TrainConfig, open_data, read_lines, train
from hagane.train.data import CatalogData
from hagane.train.skips import Skip, skips_of
from hagane.train.spike_config import SpikeConfig
from tests.catalog_fixture import filled
from tests.rank_fixture import on_ranks

CONFIG = TrainConfig(
    datasets=("arm-demo", "road-demo"),
    samples_per_step=8,
    step=StepConfig(steps=8, warmup=2, optimiser="muon"),
    spike=SpikeConfig(patience=2),
    save_every=3,
    held_out_every=5,
    held_out_samples=8,
)
ONCE, TWICE = {5}, {4, 5}
"""Batches of numbers that are not finite: one, and enough to go back."""


@dataclass(frozen=True)
class Planted:
    """A loader whose batches are changed on the way."""

    real: Loader
    number_of: Callable[[int], int]
    bad: set[int]

    @property
    def cursor(self) -> dict[str, str]:
        return dict(self.real.cursor)

    def at(self, step: int, *ranks: int) -> Batch:
        batch = self.real.at(self.number_of(step), *ranks)
        if step in self.bad:
            batch.parts[0].actions_NHA[:] = np.nan
            batch.parts[0].action_valid_NH[:] = True
        return batch


def planted(home: Path, config: TrainConfig, bad: set[int], number_of: Callable[[int], int] = int) -> CatalogData:
    data = open_data(open_catalog(home, noted=False), config)
    return replace(data, train=Planted(data.train, number_of, bad))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    filled(folder, {"arm": 6, "road": 6})
    return folder


@pytest.fixture(scope="module")
def whole(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run that goes back once."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder, CONFIG, planted(home, CONFIG, TWICE))
    return folder


def figures(folder: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in at.items() if k not in ("seconds", "samples_per_s")}
        for at in read_lines(folder / "metrics.jsonl")
    ]


def weights(folder: Path) -> dict[str, str]:
    newest = latest(folder / "checkpoints")
    assert newest is not None
    return {p.name: digest_file(p) for p in sorted(newest.rglob("*.safetensors"))}


@pytest.mark.parametrize(("bad", "spans", "left"), [(ONCE, [(5, 5)], 5), (TWICE, [(4, 4), (3, 5)], 3)])
def test_a_run_is_what_it_would_have_been_without_those_batches(
    home: Path, tmp_path: Path, bad: set[int], spans: list[tuple[int, int]], left: int
) -> None:
    noted: list[Skip] = []
    train(tmp_path / "run", CONFIG, planted(home, CONFIG, bad), left_out=noted.append)
    assert [(s.first, s.last) for s in noted] == spans and tuple(noted) == skips_of(tmp_path / "run")
    gap = 6 - left
    # the noise of a batch goes with its number, so the loader of the other run gives both
    train(tmp_path / "other", CONFIG, planted(home, CONFIG, set(), lambda k: k if k < left else k + gap))
    assert figures(tmp_path / "run") == figures(tmp_path / "other")
    assert weights(tmp_path / "run") == weights(tmp_path / "other")


@pytest.mark.parametrize("lines", [4, 5, pytest.param(7, marks=pytest.mark.slow)])
def test_killed_and_resumed_it_leaves_out_the_same(home: Path, tmp_path: Path, whole: Path, lines: int) -> None:
    def killed(line: object) -> None:
        nonlocal lines
        lines -= 1
        if not lines:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", CONFIG, planted(home, CONFIG, TWICE), report=killed)
    train(tmp_path / "run", CONFIG, planted(home, CONFIG, TWICE), resume=True)
    assert figures(tmp_path / "run") == figures(whole)
    assert skips_of(tmp_path / "run") == skips_of(whole)
    assert weights(tmp_path / "run") == weights(whole)
    (tmp_path / "run" / "skips.jsonl").unlink()
    with pytest.raises(TrainingError, match="learned from other batches"):
        train(tmp_path / "run", CONFIG, planted(home, CONFIG, TWICE), resume=True)


def one_rank(home: str, folder: str) -> None:
    config = replace(CONFIG, layout=Layout(dp_shard=2))
    train(Path(folder), config, planted(Path(home), config, TWICE))


def test_two_ranks_decide_alike(home: Path, tmp_path: Path, whole: Path) -> None:
    on_ranks(2, one_rank, str(home), str(tmp_path / "two"))
    assert [(s.first, s.last) for s in skips_of(tmp_path / "two")] == [(4, 4), (3, 5)]
    for a, b in zip(figures(whole), figures(tmp_path / "two"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-4) and b["step"] == a["step"]


def test_data_without_a_good_batch_are_given_up(home: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"at step 1: 2 bad batches in a row.*arm is not finite.*no checkpoint"):
        train(tmp_path / "run", CONFIG, planted(home, CONFIG, set(range(99))))
    assert not (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert json.loads((tmp_path / "run" / "skips.jsonl").read_text())["loss"] is None
