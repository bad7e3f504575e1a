"""The scripts for a cluster: their shell is well formed, and the Slurm one does its work under a stand-in for Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hagane.terms import dump_toml
from tests.catalog_fixture import filled
from tests.test_faults import LONG, after_a_checkpoint, near, run, said, started

SCRIPTS = Path(__file__).parents[1] / "examples" / "slurm"
STAND_INS = {
    "torchrun": f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run "$@"\n',
    # two nodes on this machine; options end at the command
    "srun": '#!/bin/bash\nwhile [ "${1#--}" != "$1" ]; do shift; done\n'
    'echo $$ > "$FAKE/srun"; trap "" USR1\n"$@" & a=$!; "$@" & b=$!\nwait $a; x=$?; wait $b; y=$?; exit $((x | y))\n',
    # like the kernel's list of a job step: every process below srun, of whatever session
    "scancel": '#!/bin/bash\necho "$@" >> "$FAKE/scancel"\n'
    "below() { for p in $(cat /proc/$1/task/$1/children); do echo $p; below $p; done; }\n"
    'kill "${1/--signal=/-}" $(below $(cat "$FAKE/srun"))\n',
    "scontrol": '#!/bin/sh\nif [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$FAKE/requeued"; fi\n',
}


@pytest.mark.parametrize("script", sorted(p.name for p in SCRIPTS.iterdir()))
def test_the_shell_is_well_formed(script: str) -> None:
    done = subprocess.run(["bash", "-n", str(SCRIPTS / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("script", sorted(p.name for p in SCRIPTS.iterdir()))
def test_a_missing_setting_is_named(script: str) -> None:
    env = {"PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", str(SCRIPTS / script)], capture_output=True, text=True, check=False, env=env)
    assert done.returncode != 0 and "RUN: set RUN to the folder of the run" in done.stderr


def stand_in(folder: Path) -> dict[str, str]:
    """An environment in which Slurm's commands are small scripts, and two nodes are this machine twice."""
    folder.mkdir()
    for name, text in STAND_INS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "FAKE": str(folder),
        "SLURM_JOB_ID": str(10000 + os.getpid() % 10000),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "RANKS_PER_NODE": "1",
    }


@pytest.mark.slow
def test_before_its_time_limit_a_job_saves_goes_back_to_the_queue_and_goes_on(tmp_path: Path) -> None:
    filled(tmp_path, {"arm": 6, "road": 6})
    (tmp_path / "long.toml").write_text(dump_toml(LONG))
    assert run(tmp_path, "whole", "--config", str(tmp_path / "long.toml")) == 0
    folder = tmp_path / "runs" / "job"
    env = {**stand_in(tmp_path / "fake"), "RUN": str(folder), "SITE": str(tmp_path)}
    command = ["bash", str(SCRIPTS / "train.sbatch"), "--config", str(tmp_path / "long.toml")]
    with started(command, **env) as job:
        after_a_checkpoint(job, folder, lambda: job.send_signal(signal.SIGUSR1))
        text = said(job)
    assert job.returncode == 0 and "stopped as asked" in text and "goes back to the queue" in text, text
    assert (tmp_path / "fake" / "requeued").read_text() == f"requeue {env['SLURM_JOB_ID']}\n"
    assert (tmp_path / "fake" / "scancel").read_text() == f"--signal=USR1 {env['SLURM_JOB_ID']}\n"
    with started(command, **env, SLURM_RESTART_COUNT="1") as job:
        text = said(job)
    assert job.returncode == 0 and "fitted to 2 ranks" in text and "stopped" not in text, text
    near(tmp_path, "job")


@pytest.mark.slow
def test_a_job_that_fails_without_coming_forward_is_not_tried_again(tmp_path: Path) -> None:
    filled(tmp_path, {"arm": 6})
    env = {**stand_in(tmp_path / "fake"), "RUN": str(tmp_path / "runs" / "job"), "SITE": str(tmp_path)}
    with started(["bash", str(SCRIPTS / "train.sbatch"), "--config", "nowhere.toml"], **env) as job:
        text = said(job)
    assert job.returncode != 0 and "nowhere.toml" in text and not (tmp_path / "fake" / "requeued").exists(), text
