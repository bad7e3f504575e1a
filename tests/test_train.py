"""Training as its user sees it: a run's folder, kill -9 and resume, again, refusals, a full disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hagane.cli import main
from hagane.cli.train import Train, resolve
from hagane.engine import StepConfig, make_engine
from hagane.model import latest, read_manifest
from hagane.seal import Ledger
from hagane.terms import APPLIED, CheckpointError, ConfigError, Episode, TrainingError, digest_file, dump_toml
from hagane.train import TrainConfig, find_recipe, open_data, read_lines, train
from hagane.train.loop import VISION, vision_weight
from tests.catalog_fixture import MACHINES, episodes, filled, make_home
from tests.model_fixture import ARM, CAM, shape_of

DATASETS = ("arm-demo", "road-demo")
CONFIG = TrainConfig(
    datasets=DATASETS,
    samples_per_step=8,
    step=StepConfig(steps=12, warmup=2),
    save_every=4,
    held_out_every=6,
    held_out_samples=8,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with two small data sets, and the configuration of a short run beside it."""
    folder = tmp_path_factory.mktemp("site")
    filled(folder, {"arm": 6, "road": 6})
    (folder / "run.toml").write_text(dump_toml(CONFIG))
    return folder


def run(home: Path, name: str, *more: str) -> int:
    return main(["train", "--home", str(home), "--run", str(home / "runs" / name), *more])


def losses(home: Path, name: str) -> list[dict[str, float]]:
    keep = ("step", "loss", "loss/arm", "loss/road", "next/arm", "gradient_norm", "lr", "held_out/arm")
    lines = read_lines(home / "runs" / name / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k in keep} for line in lines]


def served(home: Path, name: str) -> dict[str, str]:
    folder = latest(home / "runs" / name / "checkpoints")
    assert folder is not None
    return {str(p.relative_to(folder)): digest_file(p) for p in sorted(folder.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """The uninterrupted run that others are compared with."""
    assert run(home, "whole", "--config", str(home / "run.toml")) == 0
    return home


def test_a_run_leaves_all_its_files(whole: Path) -> None:
    folder = whole / "runs" / "whole"
    assert {"config.toml", "record.json", "metrics.jsonl", "checkpoints"} <= {p.name for p in folder.iterdir()}
    record = json.loads((folder / "record.json").read_text())
    newest = latest(folder / "checkpoints")
    assert newest is not None and record["checkpoint_id"] == read_manifest(newest).id
    assert set(record["datasets"]) == set(DATASETS) and record["steps"] == 12
    assert len(list((folder / "checkpoints").iterdir())) == CONFIG.keep
    lines = losses(whole, "whole")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(np.isfinite(line["loss"]) for line in lines) and "held_out/arm" in lines[5]
    kinds = [e.kind for e in Ledger(whole / "ledger.jsonl").entries()]
    assert "checkpoint" in kinds and "read" in kinds


def test_again_gives_identical_losses_and_weights(whole: Path) -> None:
    assert run(whole, "again", "--again", str(whole / "runs" / "whole")) == 0
    assert losses(whole, "again") == losses(whole, "whole")
    assert served(whole, "again") == served(whole, "whole")


def test_killed_and_resumed_has_the_losses_of_the_whole_run(whole: Path) -> None:
    folder = whole / "runs" / "killed"
    command = [sys.executable, "-m", "hagane", "train", "--home", str(whole), "--run", str(folder)]
    process = subprocess.Popen([*command, "--config", str(whole / "run.toml")], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while latest(folder / "checkpoints") is None and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended by itself: nothing was killed"
    assert latest(folder / "checkpoints") is not None, "no checkpoint within two minutes"
    half = folder / "checkpoints" / "step-000099"
    half.mkdir()
    (half / "weights-member-cars.safetensors").write_bytes(b"half")
    assert latest(folder / "checkpoints") != half, "a folder without a manifest was counted"
    half.joinpath("weights-member-cars.safetensors").unlink()
    half.rmdir()
    with (folder / "metrics.jsonl").open("ab") as f:
        f.write(b'{"step": 9')  # a line that the kill tore
    assert run(whole, "killed", "--resume") == 0
    assert losses(whole, "killed") == losses(whole, "whole")
    assert served(whole, "killed") == served(whole, "whole")
    assert not list((folder / "checkpoints").glob(".making-*"))


def test_two_processes_give_the_losses_of_one(whole: Path) -> None:
    assert run(whole, "two", "--config", str(whole / "run.toml"), "--nproc", "2") == 0
    for a, b in zip(losses(whole, "whole"), losses(whole, "two"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-4)


def test_a_run_is_not_written_over(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(whole, "whole", "--config", str(whole / "run.toml")) == 1
    said = capsys.readouterr().err
    assert "there is a run here already" in said and "next:" in said


def test_resume_refuses_other_settings(whole: Path) -> None:
    from hagane.cli.site import open_catalog

    other = replace(CONFIG, seed=1)
    with pytest.raises(TrainingError, match=r"the mixture and the settings changed"):
        train(whole / "runs" / "whole", other, open_data(open_catalog(whole), other), resume=True)


def test_resume_names_a_setting_or_a_data_set_that_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hagane.cli.site import open_catalog

    filled(tmp_path, {"arm": 6, "road": 6})
    short = dump_toml(replace(CONFIG, step=StepConfig(steps=4, warmup=2)))
    (tmp_path / "run.toml").write_text(short)
    assert run(tmp_path, "it", "--config", str(tmp_path / "run.toml")) == 0
    config, before = tmp_path / "runs" / "it" / "config.toml", losses(tmp_path, "it")
    config.write_text(short.replace("steps = 4", "steps = 8"))
    assert run(tmp_path, "it", "--resume") == 1
    said = capsys.readouterr().err
    assert said.count("the settings changed") == 1 and "next:" in said and "Traceback" not in said
    config.write_text(short)
    for old in ("sets", "cache"):
        shutil.rmtree(tmp_path / "catalog" / old, ignore_errors=True)
    home = make_home(tmp_path)
    for machine in (MACHINES["arm"], MACHINES["road"]):
        contract = home.contract(machine)
        open_catalog(tmp_path).add(f"{machine.name}-demo", machine, contract, episodes(machine, 6, first=1))
    assert run(tmp_path, "it", "--resume") == 1
    said = capsys.readouterr().err
    assert said.count("the data changed") == 1 and "next:" in said
    assert losses(tmp_path, "it") == before


def test_resume_refuses_overrides_and_an_empty_folder(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(whole, "whole", "--resume", "--steps", "20") == 1
    assert "keeps its configuration" in capsys.readouterr().err
    assert run(whole, "nothing", "--resume") == 1
    assert "no such file" in capsys.readouterr().err


def test_a_full_disk_is_one_message_and_the_run_goes_on_later(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import hagane.engine.checkpoint_files as checkpoint_files

    real, written = checkpoint_files.write_chunks, []

    def full(table: Path, *args: Any) -> list[Path]:
        written.append(table)
        if len(written) > 4:  # the second table of the second checkpoint
            table.mkdir(parents=True, exist_ok=True)
            (table / "half.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(table, *args)

    monkeypatch.setattr(checkpoint_files, "write_chunks", full)
    assert run(whole, "full", "--config", str(whole / "run.toml")) == 1
    said = capsys.readouterr().err
    assert said.count("the disk is full") == 1 and "next: free space" in said and "Traceback" not in said
    monkeypatch.undo()
    kept = latest(whole / "runs" / "full" / "checkpoints")
    assert kept is not None
    read_manifest(kept)
    assert run(whole, "full", "--resume") == 0
    assert losses(whole, "full") == losses(whole, "whole")


def test_metrics_that_cannot_be_written_are_one_message(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, opened = Path.open, []

    def full(self: Path, mode: str = "r", *args: object, **more: object) -> object:
        if self.name == "metrics.jsonl" and mode == "ab":
            opened.append(self)
            if len(opened) == 6:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, mode, *args, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    assert run(whole, "lines", "--config", str(whole / "run.toml")) == 1
    monkeypatch.undo()
    said = capsys.readouterr().err
    assert said.count("the disk is full") == 1 and "metrics.jsonl" in said and "next: free space" in said
    assert run(whole, "lines", "--resume") == 0
    assert losses(whole, "lines") == losses(whole, "whole")


FULL = """
mount -t tmpfs -o size=36m none "$3" || exit 77
"$1" -m hagane train --home "$2" --run "$3/run" --config "$2/run.toml"; echo "first $?"
ls -A "$3/run/checkpoints"
mount -o remount,size=400m "$3"
"$1" -m hagane train --home "$2" --run "$3/run" --resume; echo "second $?"
cp "$3/run/metrics.jsonl" "$4"
"""
"""A disk of 36 MB holds one checkpoint of about 28 MB, not two."""


@pytest.mark.slow
def test_a_disk_that_is_really_full(whole: Path, tmp_path: Path) -> None:
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("a small disk of one's own cannot be mounted here (unshare -rm)")
    disk, kept = tmp_path / "disk", whole / "runs" / "small" / "metrics.jsonl"
    disk.mkdir()
    kept.parent.mkdir(parents=True)
    args = ["unshare", "-rm", "sh", "-c", FULL, "sh", sys.executable, str(whole), str(disk), str(kept)]
    done = subprocess.run(args, capture_output=True, text=True, timeout=200, check=False)
    if done.returncode == 77:
        pytest.skip(f"a small disk of one's own cannot be mounted here: {done.stderr.strip()}")
    assert "first 1\nstep-000004\n" in done.stdout and "second 0" in done.stdout, done.stdout + done.stderr
    assert done.stderr.count("the disk is full") == 1 and "Traceback" not in done.stderr
    assert losses(whole, "small") == losses(whole, "whole")


def test_a_folder_that_cannot_be_made_is_one_message(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "file").write_text("not a folder")
    assert main(["train", "--home", str(home), "--run", str(home / "file/run"), "--recipe", "tiny"]) == 1
    said = capsys.readouterr().err
    assert "cannot be written: Not a directory" in said and "choose another --run" in said


def test_what_can_be_learned_is_learned(tmp_path: Path) -> None:
    from hagane.cli.site import open_catalog

    home, machine = make_home(tmp_path), MACHINES["arm"]

    def taught() -> Iterator[Episode]:
        for e in episodes(machine, 8):
            seen = e.streams["joints"].values
            seen[:] = seen[0]  # it stands still, so what comes is known from what is seen
            for name in ("hand", "hand" + APPLIED):
                e.streams[name].values[:] = np.where(seen[:, :2] > 0, 1.0, -1.0)
            for name in ("grip", "grip" + APPLIED):
                e.streams[name].values[:] = np.where(seen[:, 2:].reshape(e.streams[name].values.shape) > 0, 1.0, -1.0)
            yield e

    home.catalog().add("arm-demo", machine, home.contract(machine), taught())
    config = replace(
        CONFIG, datasets=("arm-demo",), head="l1", step=StepConfig(steps=30, warmup=3), samples_per_step=32
    )
    train(tmp_path / "runs" / "it", config, open_data(open_catalog(tmp_path), config))
    loss = [line["loss"] for line in read_lines(tmp_path / "runs" / "it" / "metrics.jsonl")]
    assert np.isfinite(loss).all() and np.mean(loss[-5:]) < 0.8 * np.mean(loss[:5]), loss


def test_a_purpose_that_is_not_granted_is_refused_and_noted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "distil.toml").write_text(dump_toml(replace(CONFIG, purpose="distil")))
    noted = len(list(Ledger(home / "ledger.jsonl").entries()))
    assert run(home, "distil", "--config", str(home / "distil.toml")) == 1
    assert "'distil' is not granted" in capsys.readouterr().err
    assert [e.kind for e in list(Ledger(home / "ledger.jsonl").entries())[noted:]] == ["refusal"], "something was read"
    assert not (home / "runs" / "distil").exists()
    assert any(e.kind == "refusal" and e.body["purpose"] == "distil" for e in Ledger(home / "ledger.jsonl").entries())


def test_vision_weights_start_the_image_path(tmp_path: Path) -> None:
    shape = shape_of(embodiments=(ARM, CAM))
    patches = torch.randn(128, 3, 16, 16)
    save_file({"model.patch_embed.proj.weight": patches}, tmp_path / "vit.safetensors")
    weight = vision_weight(tmp_path / "vit.safetensors", shape)
    model = make_engine(shape, StepConfig(), 0, given={VISION: weight}).model
    assert torch.equal(model.tokeniser.image.weight, patches.permute(0, 2, 3, 1).flatten(1))
    save_file({"head.weight": patches}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no patch embedding"):
        vision_weight(tmp_path / "other.safetensors", shape)
    (tmp_path / "half.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"cannot be read(.|\n)*next:"):
        vision_weight(tmp_path / "half.safetensors", shape)
    with pytest.raises(CheckpointError, match="no such file"):
        vision_weight(tmp_path / "none.safetensors", shape)


def test_recipes_by_name_and_from_a_file(tmp_path: Path) -> None:
    assert find_recipe("demo")(("arm-demo",)).head == "l1"
    file = tmp_path / "mine.py"
    file.write_text(
        "from hagane.train import TrainConfig\ndef long(datasets):\n    return TrainConfig(datasets=datasets, seed=7)\n"
    )
    assert find_recipe(f"{file}:long")(("a",)).seed == 7
    file.write_text(file.read_text() + "def three(datasets):\n    return 3\n")
    with pytest.raises(ConfigError, match="returned int, not a TrainConfig"):
        find_recipe(f"{file}:three")(("a",))
    for name in ("demoo", f"{file}:short", f"{tmp_path}/none.py:f"):
        with pytest.raises(ConfigError):
            find_recipe(name)


def test_flags_resolve_into_one_configuration(tmp_path: Path) -> None:
    config = resolve(Train(recipe="tiny", steps=9, seed=3, size="4m"), ("b", "a"))
    assert (config.step.steps, config.seed, config.size, config.datasets) == (9, 3, "4m", ("b", "a"))
    with pytest.raises(ConfigError, match="one of --config and --again"):
        resolve(Train(config=tmp_path, again=tmp_path), ("a",))
    with pytest.raises(ConfigError, match="at least one data set"):
        resolve(Train(), ())
