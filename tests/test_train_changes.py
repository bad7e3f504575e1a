"""A run that goes on: with other ranks and workers, and with data that was added or withdrawn on record."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hagane.catalog.split import load_split
from hagane.cli import main
from hagane.cli.site import open_catalog
from hagane.engine import Saver, StepConfig
from hagane.model import latest, read_manifest
from hagane.seal import Ledger
from hagane.terms import ConfigError, dump_toml
from hagane.train import TrainConfig, open_data, read_lines
from hagane.train.changes import changes_of
from tests.catalog_fixture import ARM, episodes, filled, make_home

FIRST = TrainConfig(
    datasets=("arm-demo", "road-demo"),
    samples_per_step=8,
    step=StepConfig(steps=8, warmup=2),
    save_every=4,
    held_out_every=8,
    held_out_samples=8,
)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two members' sets, a second set of the arm, and a machine that the first run never sees."""
    filled(tmp_path, {"arm": 6, "road": 6, "mill": 6})
    home = make_home(tmp_path)
    signed = home.contract(ARM, "arm-demo", "arm-more")
    home.catalog().add("arm-more", ARM, signed, episodes(ARM, 6, first=20))
    home.catalog().renew("arm-demo", signed)
    (tmp_path / "first.toml").write_text(dump_toml(FIRST))
    return tmp_path


def run(site: Path, *more: str) -> int:
    return main(["train", "--home", str(site), "--run", str(site / "runs" / "it"), *more])


def loss_lines(site: Path) -> list[float]:
    return [line["loss"] for line in read_lines(site / "runs" / "it" / "metrics.jsonl")]


def halfway(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stops after its first checkpoint, at step 4."""
    real = Saver.save

    def stop(*args: object) -> object:
        real(*args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(Saver, "save", stop)
    assert run(site, "--config", str(site / "first.toml")) == 130
    monkeypatch.undo()


def changed(site: Path, **fields: object) -> str:
    (site / "new.toml").write_text(dump_toml(replace(FIRST, **fields)))  # type: ignore[arg-type]
    return str(site / "new.toml")


def test_data_may_be_added_and_withdrawn_on_record(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    halfway(site, monkeypatch)
    new = changed(site, datasets=("arm-demo", "arm-more"), weights={"arm-demo": 1.0, "arm-more": 3.0})
    assert run(site, "--resume", "--config", new) == 0
    assert "from step 4 on: arm-demo, arm-more" in capsys.readouterr().out
    (change,) = changes_of(site / "runs" / "it")
    assert (change.step, change.added, change.withdrawn) == (4, ("arm-more",), ("road-demo",))
    record = json.loads((site / "runs" / "it" / "record.json").read_text())
    assert set(record["datasets"]) == {"arm-demo", "arm-more", "road-demo"}  # what was read once stays on record
    assert set(record["owners"].values()) == {"member-robots", "member-cars"}
    newest = latest(site / "runs" / "it" / "checkpoints")
    assert newest is not None and read_manifest(newest).record.datasets == record["datasets"]
    assert len(loss_lines(site)) == 8
    assert [e.body["step"] for e in Ledger(site / "ledger.jsonl").entries() if e.kind == "mixture"] == [4]


def test_a_killed_run_goes_on_with_the_change_it_recorded(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halfway(site, monkeypatch)
    new = changed(site, datasets=("arm-demo", "arm-more"))
    with monkeypatch.context() as patched:
        patched.setattr("hagane.train.train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(site, "--resume", "--config", new) == 130  # killed after the change was written down, before a step
    assert run(site, "--resume") == 0
    assert len(loss_lines(site)) == 8 and len(changes_of(site / "runs" / "it")) == 1


def test_an_unrecorded_change_is_refused(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    halfway(site, monkeypatch)
    (site / "runs" / "it" / "config.toml").write_text(dump_toml(replace(FIRST, temperature=2.0)))
    assert run(site, "--resume") == 1
    said = capsys.readouterr().err
    assert "the mixture changed since this run's checkpoint at step 4" in said and "--resume --config" in said


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 3}, "may change its data and mixture only, not seed"),
        ({"step": StepConfig(steps=9, warmup=2)}, "not step"),
        ({"datasets": ("arm-demo", "mill-demo")}, "machine 'mill' is not known to these weights"),
    ],
)
def test_what_a_change_may_not_touch(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fields: dict, message: str
) -> None:
    halfway(site, monkeypatch)
    before = (site / "runs" / "it" / "config.toml").read_bytes()
    assert run(site, "--resume", "--config", changed(site, **fields)) == 1
    assert message in capsys.readouterr().err
    assert (site / "runs" / "it" / "config.toml").read_bytes() == before and not changes_of(site / "runs" / "it")


def test_resumed_on_other_ranks_and_workers_the_losses_stay(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["train", "--home", str(site), "--run", str(site / "one"), "--config", str(site / "first.toml")]) == 0
    whole = [line["loss"] for line in read_lines(site / "one" / "metrics.jsonl")]
    halfway(site, monkeypatch)
    ahead = (site / "runs" / "it" / "config.toml").read_text().replace("loader_workers = 0", "loader_workers = 2")
    (site / "runs" / "it" / "config.toml").write_text(ahead)
    assert run(site, "--resume", "--nproc", "2") == 0
    assert loss_lines(site) == pytest.approx(whole, rel=2e-4)


def test_a_division_by_site_or_episode_is_kept(site: Path) -> None:
    args = ["catalog", "split", "arm-demo", "arm-more", "road-demo", "--share", "0.4", "--home", str(site)]
    assert main([*args, "--out", str(site / "split.toml")]) == 0
    divided = load_split(site / "split.toml")
    config = replace(FIRST, datasets=("arm-demo", "arm-more", "road-demo"), split=str(site / "split.toml"))
    data = open_data(open_catalog(site), config)
    for side, loader in (("held", data.held_out), ("train", data.train)):
        for name, ids in loader.episodes.items():
            assert ids and all(((name, i) in divided.held) == (side == "held") for i in ids)
    assert data.train.cursor != open_data(open_catalog(site), replace(config, split="")).train.cursor
    # a data set that is held as a whole is not trained on, and the others are
    whole = replace(divided.sets[1], held=tuple(data.train.episodes["arm-more"] + data.held_out.episodes["arm-more"]))
    (site / "other.toml").write_text(dump_toml(replace(divided, sets=(divided.sets[0], whole, divided.sets[2]))))
    data = open_data(open_catalog(site), replace(config, split=str(site / "other.toml")))
    assert set(data.train.counts) == {"arm-demo", "road-demo"} and len(data.held_out.episodes["arm-more"]) == 6
    with pytest.raises(ConfigError, match="does not cover data set 'mill-demo'"):
        open_data(open_catalog(site), replace(config, datasets=("arm-demo", "mill-demo")))


def record_of(site: Path) -> dict[str, Any]:
    return dict(json.loads((site / "runs" / "it" / "record.json").read_text()))


def test_a_resumed_run_keeps_its_place_on_record(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halfway(site, monkeypatch)
    import hagane.train.loop as loop

    newest = latest(site / "runs" / "it" / "checkpoints")
    assert newest is not None
    monkeypatch.setattr(loop, "train_step", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(site, "--resume") == 130  # killed before another step
    assert (record_of(site)["steps"], record_of(site)["checkpoint_id"]) == (4, read_manifest(newest).id)
    monkeypatch.undo()
    assert run(site, "--resume") == 0
    whole = record_of(site)
    assert run(site, "--resume") == 0  # there is nothing left to do
    assert record_of(site) == whole and whole["steps"] == 8
    done = [e.body["checkpoint"] for e in Ledger(site / "ledger.jsonl").entries() if e.kind == "checkpoint"]
    assert done[-1] == whole["checkpoint_id"] and len(set(done)) == len(done)  # each once, when it became whole


def test_a_change_that_was_half_written_is_not_taken_for_one(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    halfway(site, monkeypatch)
    new = changed(site, datasets=("arm-demo", "arm-more"))
    import hagane.train.changes as module

    real = module.write_file

    def dies(path: Path, data: bytes) -> None:
        if path.name == "config.toml":
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(module, "write_file", dies)
    assert run(site, "--resume", "--config", new) == 130
    monkeypatch.undo()
    assert [e.body["added"] for e in Ledger(site / "ledger.jsonl").entries() if e.kind == "mixture"] == [["arm-more"]]
    capsys.readouterr()
    assert run(site, "--resume") == 1
    said = capsys.readouterr().err
    assert "recorded at step 4 is not what the configuration says" in said and "--config NEW.toml" in said
    assert run(site, "--resume", "--config", new) == 0
    (change,) = changes_of(site / "runs" / "it")
    assert (change.added, change.withdrawn) == (("arm-more",), ("road-demo",))


@pytest.mark.parametrize("line", ["{}", "[1]", "no json", '{"step": 4}'])
def test_a_file_of_changes_that_is_none(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    halfway(site, monkeypatch)
    (site / "runs" / "it" / "changes.jsonl").write_text(line + "\n")
    assert run(site, "--resume") == 1
    assert "changes.jsonl: a line is no recorded change of data" in capsys.readouterr().err


def test_the_loaders_threads_end_with_the_run(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / "first.toml").write_text(dump_toml(replace(FIRST, loader_workers=2)))
    halfway(site, monkeypatch)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("loader")]
