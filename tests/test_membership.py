"""Membership inference: it finds a memoriser, clears an untrained network, and its figures are the textbook's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hagane.cli import main
from hagane.engine import StepConfig
from hagane.evaluate.membership import auc, figures
from hagane.seal.release_claims import membership_of
from hagane.terms import dump_toml
from hagane.train import TrainConfig
from tests.catalog_fixture import ARM, episodes, make_home


def test_auc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 40).astype(float), rng.integers(0, 5, 30).astype(float)
    pairs = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2
    assert auc(a, b) == pytest.approx(pairs) and auc(b, a) == pytest.approx(1 - pairs)
    assert auc(np.ones(3), np.zeros(4)) == 1 and auc(np.ones(3), np.ones(4)) == 0.5


def test_figures_of_scores_that_tell_nothing_and_everything() -> None:
    rng = np.random.default_rng(1)
    nothing = figures("x", "loss", rng.normal(size=300), rng.normal(size=400))
    assert nothing.low < 0.5 < nothing.high and nothing.high - nothing.low < 0.1
    assert nothing.tpr_at_1_percent < 0.05
    some = figures("x", "loss", rng.normal(1, 1, 300), rng.normal(size=400))
    # two normals a spread apart: Phi(1 / sqrt 2) = .760; beyond the 1% point Phi(1 - 2.326) = .092
    assert some.low < 0.760 < some.high and abs(some.tpr_at_1_percent - 0.092) < 0.06
    all_ = figures("x", "loss", np.array([2.0, 3.0]), np.zeros(5))
    assert (all_.auc, all_.low, all_.high, all_.tpr_at_1_percent) == (1, 1, 1, 1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with 24 short episodes of noise, half of them held out: nothing in them can be learned, only kept."""
    folder = tmp_path_factory.mktemp("site")
    site = make_home(folder)
    contract = site.contract(ARM, purposes=("anchor", "evaluate", "view"))
    site.catalog().add("arm-demo", ARM, contract, episodes(ARM, 24))
    split = ["catalog", "split", "arm-demo", "--home", str(folder), "--share", "0.5"]
    assert main([*split, "--out", str(folder / "split.toml")]) == 0
    return folder


def measured(home: Path, steps: int) -> dict[str, dict[str, float]]:
    config = TrainConfig(
        datasets=("arm-demo",), samples_per_step=48, split=str(home / "split.toml"),
        step=StepConfig(steps=steps, warmup=5),
    )  # fmt: skip
    (home / "run.toml").write_text(dump_toml(config))
    run, out = home / "runs" / f"r{steps}", home / f"membership-{steps}.json"
    assert main(["train", "--home", str(home), "--run", str(run), "--config", str(home / "run.toml")]) == 0
    assert main(["release", "membership", str(run), "--home", str(home), "--out", str(out)]) == 0
    rows = membership_of(out.read_bytes())["rows"]
    assert rows == json.loads(out.read_text())["rows"]
    return {row["attack"]: row for row in rows}


def test_a_memoriser_is_found_and_an_untrained_network_is_not(home: Path) -> None:
    kept, fresh = measured(home, 130), measured(home, 1)
    for attack in ("loss", "calibrated"):
        assert kept[attack]["auc"] > 0.9 and kept[attack]["low"] > 0.8, kept
        assert fresh[attack]["low"] < 0.5 < fresh[attack]["high"], fresh
