"""Faults on real processes: ranks killed or stopped, a full disk, lost checkpoints, requests to stop."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hagane.cli import main
from hagane.engine import StepConfig
from hagane.model import latest
from hagane.terms import dump_toml
from hagane.train import TrainConfig, loop
from tests.catalog_fixture import filled
from tests.test_train import CONFIG, losses, run

LONG = replace(CONFIG, step=StepConfig(steps=24, warmup=2), watch_s=60.0)
"""Long enough to be killed on the way."""
WAIT_S = 240


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    filled(folder, {"arm": 6, "road": 6})
    write(folder, "run", CONFIG)
    write(folder, "long", LONG)
    return folder


def write(home: Path, name: str, config: TrainConfig) -> None:
    (home / f"{name}.toml").write_text(dump_toml(config))


def args(home: Path, name: str, *more: str) -> list[str]:
    return ["train", "--home", str(home), "--run", str(home / "runs" / name), *more]


def torchrun(ranks: int, *more: str) -> list[str]:
    """torchrun of this interpreter, on this machine; "--" since it would take our --run for its own."""
    own = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*own, *more, "-m", "--"]


@contextmanager
def started(command: list[str], **env: str) -> Iterator[subprocess.Popen[str]]:
    """A process of ours with what it prints on one pipe; killed if the test leaves it running."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **env}
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            for pid in [*children(process.pid), process.pid]:
                os.kill(pid, signal.SIGKILL)
            process.wait()


def children(pid: int) -> list[int]:
    """Python processes below this one that train: not multiprocessing's tracker."""
    found = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return sorted(p for p in found if b"resource_tracker" not in Path(f"/proc/{p}/cmdline").read_bytes())


def after_a_checkpoint(process: subprocess.Popen[str], run: Path, do: Callable[[], None]) -> None:
    """Call `do` as soon as the run has a whole checkpoint, while it trains on."""
    deadline = time.monotonic() + WAIT_S
    while latest(run / "checkpoints") is None and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    assert process.poll() is None, f"it ended by itself: nothing was disturbed\n{process.communicate()[0]}"
    assert latest(run / "checkpoints") is not None, "no checkpoint in time"
    do()


def said(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=WAIT_S)[0]


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    assert run(home, "whole", "--config", str(home / "long.toml")) == 0
    return home


def near(home: Path, name: str) -> None:
    """The losses of the undisturbed run of one process, as far as another order of sums allows."""
    for a, b in zip(losses(home, "whole"), losses(home, name), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-4), b["step"]


def test_a_killed_rank_ends_all_with_one_message_and_the_run_goes_on_on_other_ranks(whole: Path) -> None:
    folder = whole / "runs" / "killed"
    command = [sys.executable, "-m", "hagane", *args(whole, "killed", "--config", str(whole / "long.toml"))]
    with started([*command, "--nproc", "2"]) as process:
        victim = 0

        def kill() -> None:
            nonlocal victim
            ranks = children(process.pid)
            assert len(ranks) == 2
            victim = ranks[1]
            os.kill(victim, signal.SIGKILL)

        after_a_checkpoint(process, folder, kill)
        text = said(process)
    assert process.returncode == 1 and "Traceback" not in text, text
    assert text.count("rank 1 of this run was killed by SIGKILL") == 1 and f"process {victim}" in text, text
    assert text.count("next:") == 1 and "--resume" in text
    assert run(whole, "killed", "--resume", "--nproc", "1") == 0
    near(whole, "killed")


def test_torchrun_starts_again_and_the_run_goes_on_by_itself(whole: Path) -> None:
    folder = whole / "runs" / "elastic"
    command = torchrun(1, "--max-restarts=1")
    with started([*command, "hagane", *args(whole, "elastic", "--config", str(whole / "long.toml"))]) as process:
        after_a_checkpoint(process, folder, lambda: os.kill(children(process.pid)[0], signal.SIGKILL))
        text = said(process)
    assert process.returncode == 0, text
    assert losses(whole, "elastic") == losses(whole, "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop_a_run_saves_and_goes_on_later(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    name, real = f"asked-{number.name}", loop.train_step

    def step(engine: Any, *rest: Any, **more: Any) -> Any:
        if engine.step == 9:
            os.kill(os.getpid(), number)
        return real(engine, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", step)
        assert run(whole, name, "--config", str(whole / "long.toml")) == 0
    text = capsys.readouterr().out
    newest = latest(whole / "runs" / name / "checkpoints")
    # the step at whose end it looks next
    assert newest is not None and newest.name == "step-000011"
    assert "stopped as asked, before step 24" in text and "--resume" in text
    assert run(whole, name, "--resume") == 0
    assert losses(whole, name) == losses(whole, "whole")


def test_a_damaged_or_lost_checkpoint_is_passed_over(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = whole / "runs" / "lost"
    shutil.copytree(whole / "runs" / "whole", folder)
    newest = latest(folder / "checkpoints")
    assert newest is not None
    next((newest / "weights").glob("*.safetensors")).unlink()
    assert run(whole, "lost", "--resume") == 0
    text = capsys.readouterr().err
    assert f"passed over {newest.name}" in text and "is missing" in text and "going on from step-000020" in text
    assert losses(whole, "lost") == losses(whole, "whole")


def test_a_checkpoint_with_another_shape_of_weights_is_passed_over(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole / "runs" / "shape"
    shutil.copytree(whole / "runs" / "whole", folder)
    newest = latest(folder / "checkpoints")
    assert newest is not None
    # still a valid file: of a machine that the data do not have
    text = (newest / "model.toml").read_text()
    (newest / "model.toml").write_text(text.replace('name = "', 'name = "x', 1))
    assert run(whole, "shape", "--resume") == 0
    assert f"passed over {newest.name}" in capsys.readouterr().err
    assert losses(whole, "shape") == losses(whole, "whole")


def test_when_all_checkpoints_are_gone_nothing_is_trained_over_the_run(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole / "runs" / "gone"
    shutil.copytree(whole / "runs" / "whole", folder)
    shutil.rmtree(folder / "checkpoints")
    before = (folder / "metrics.jsonl").read_bytes()
    assert run(whole, "gone", "--resume") == 1
    text = capsys.readouterr().err
    assert "had saved step 24, and no whole checkpoint of it is left" in text and text.count("next:") == 1
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_run_that_saved_nothing_yet_goes_on_from_its_start(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(whole, "early", "--config", str(whole / "long.toml")) == 130
    assert "go on with `hagane train --resume" in capsys.readouterr().err
    assert run(whole, "early", "--resume") == 0
    assert losses(whole, "early") == losses(whole, "whole")


@pytest.fixture(scope="module")
def whole4(whole: Path) -> Path:
    """The undisturbed run on four ranks."""
    assert run(whole, "whole4", "--config", str(whole / "long.toml"), "--nproc", "4") == 0
    return whole


@pytest.mark.slow
def test_one_of_four_killed_under_torchrun_leaves_the_losses_as_they_were(whole4: Path) -> None:
    folder = whole4 / "runs" / "elastic4"
    command = torchrun(4, "--max-restarts=2")
    with started([*command, "hagane", *args(whole4, "elastic4", "--config", str(whole4 / "long.toml"))]) as process:
        after_a_checkpoint(process, folder, lambda: os.kill(children(process.pid)[2], signal.SIGKILL))
        text = said(process)
    assert process.returncode == 0, text
    assert losses(whole4, "elastic4") == losses(whole4, "whole4")


@pytest.mark.slow
def test_a_stopped_rank_under_torchrun_is_named_and_the_run_goes_on(whole4: Path) -> None:
    write(whole4, "watched", replace(LONG, watch_s=8.0))
    folder = whole4 / "runs" / "stuck4"
    command = torchrun(4, "--max-restarts=2")
    with started([*command, "hagane", *args(whole4, "stuck4", "--config", str(whole4 / "watched.toml"))]) as process:
        victim = 0

        def stop() -> None:
            nonlocal victim
            victim = children(process.pid)[2]
            os.kill(victim, signal.SIGSTOP)

        after_a_checkpoint(process, folder, stop)
        text = said(process)
    assert process.returncode == 0, text
    assert text.count("gave no sign of life") == 1 and f"(process {victim} on" in text, text
    assert "all_reduce" in text
    assert losses(whole4, "stuck4") == losses(whole4, "whole4")


@pytest.mark.slow
def test_all_killed_and_resumed_on_four_and_on_two(whole4: Path) -> None:
    folder = whole4 / "runs" / "all4"
    command = [sys.executable, "-m", "hagane", *args(whole4, "all4", "--config", str(whole4 / "long.toml"))]
    with started([*command, "--nproc", "4"]) as process:

        def kill() -> None:
            for pid in [process.pid, *children(process.pid)]:
                os.kill(pid, signal.SIGKILL)

        after_a_checkpoint(process, folder, kill)
        assert process.wait() == -signal.SIGKILL
    shutil.copytree(folder, whole4 / "runs" / "all4-as-2")
    assert run(whole4, "all4", "--resume", "--nproc", "4") == 0
    assert losses(whole4, "all4") == losses(whole4, "whole4")
    assert run(whole4, "all4-as-2", "--resume", "--nproc", "2") == 0
    near(whole4, "all4-as-2")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_two_ranks_end_on_ctrl_c_and_stop_when_asked(whole: Path, number: signal.Signals) -> None:
    name = f"two-{number.name}"
    command = [sys.executable, "-m", "hagane", *args(whole, name, "--config", str(whole / "long.toml"))]
    with started([*command, "--nproc", "2"]) as process:
        after_a_checkpoint(process, whole / "runs" / name, lambda: process.send_signal(number))
        asked = time.monotonic()
        text = said(process)
        took_s = time.monotonic() - asked
    assert "Traceback" not in text and "go on with `hagane train --resume" in text, text
    if number == signal.SIGINT:
        assert process.returncode == 130 and took_s < 60
    else:
        assert process.returncode == 0 and "stopped as asked" in text
    assert main(args(whole, name, "--resume", "--nproc", "1")) == 0
    near(whole, name)


FULL = """
mount -t tmpfs -o size=36m none "$3" || exit 77
"$1" -m hagane train --home "$2" --run "$3/run" --config "$2/run.toml" --nproc 2; echo "first $?"
ls -A "$3/run/checkpoints"
mount -o remount,size=400m "$3"
"$1" -m hagane train --home "$2" --run "$3/run" --resume; echo "second $?"
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full_ends_all_ranks_with_one_message(home: Path, tmp_path: Path) -> None:
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("a small disk of one's own cannot be mounted here (unshare -rm)")
    command = ["unshare", "-rm", "sh", "-c", FULL, "sh", sys.executable, str(home), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    if done.returncode == 77:
        pytest.skip(f"a small disk of one's own cannot be mounted here: {done.stderr.strip()}")
    assert "first 1\nstep-000004\n" in done.stdout and "second 0" in done.stdout, done.stdout + done.stderr
    assert done.stderr.count("the disk is full") == 1 and "Traceback" not in done.stderr, done.stderr
