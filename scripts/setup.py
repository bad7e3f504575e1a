"""Make .venv and install hagane into it; standard library only, never as root, nothing outside the folder.

usage: setup.py EXTRA...            (run by make; environment: TORCH, TORCH_INDEX, VENV)

TORCH        the version of torch (default: the pinned one), or "system" to use the one of the interpreter
TORCH_INDEX  a package index that offers the build of torch you want (CPU, or one CUDA version)
VENV         the folder (default .venv)
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / os.environ.get("VENV", ".venv")
BIN = VENV / "bin"
PIP_FLAGS = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "-q"]
NEED_GB = 3.0
NEED_CUDA_GB = 12.0
# extras that may fail on a machine, and what is then missing; "dev" may not
PARTS = {
    "intake": "CAN logs with a DBC, MCAP and ROS bags, HDF5 cannot be read (CSV, Parquet and LeRobot can)",
    "mdf": "MDF4 measurements cannot be read",
    "opcua": "the history of an OPC UA server cannot be read",
    "ray": "conversion cannot be spread over a Ray cluster (a pool of processes can do it on one machine)",
    "worlds": "the arm's world (Meta-World on MuJoCo) cannot run; road and mill can",
}


class Failed(Exception):
    """One message for the person at the terminal, with the next step."""


def main(extras: list[str]) -> int:
    """Install; returns the exit code."""
    try:
        say(f"Python {platform.python_version()} ({sys.executable}) on {platform.system()} {platform.machine()}")
        say_what_cannot_run(platform.system(), platform.machine())
        check_disk(NEED_GB if not (BIN / "python").exists() else 0.5)
        make_venv()
        with tempfile.TemporaryDirectory() as folder:
            pins = write_pins(Path(folder) / "constraints.txt")
            install_torch(pins)
            missing = install_hagane(extras, pins)
    except Failed as e:
        print(f"setup: {e}", file=sys.stderr)
        return 1
    (VENV / f".ready-{'-'.join(extras)}").write_text("".join(f"{m}\n" for m in missing), "utf-8")
    say(f"ready: {VENV.relative_to(ROOT) if VENV.is_relative_to(ROOT) else VENV}")
    for part in missing:
        print(f"setup: NOT installed: {part}: {PARTS[part]}", file=sys.stderr)
    return 0


def say(line: str) -> None:
    """One plain line."""
    print(f"setup: {line}", flush=True)


def say_what_cannot_run(system: str, machine: str) -> None:
    """Linux first: say what other systems lack.

    Raises:
        Failed: no build of torch exists for the machine.
    """
    if system == "Darwin" and machine == "x86_64":
        raise Failed("torch has no build for Intel Macs any more\n  next: use Linux or an Apple M machine")
    if system == "Darwin":
        say("macOS: works without Linux's namespaces (the network test is skipped) and EGL/OSMesa (the arm is drawn)")
    elif system != "Linux":
        raise Failed(f"{system} is not supported: files are locked and run folders synced as on Linux and macOS")


def check_disk(need_gb: float) -> None:
    """Raises Failed when the disk has less free space than the installation needs."""
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < need_gb:
        raise Failed(
            f"{free_gb:.1f} GB free on the disk of {ROOT}, and {need_gb:.1f} GB are needed\n"
            "  next: free some space, or put the checkout on another disk"
        )
    say(f"{free_gb:.0f} GB free on disk, {need_gb:.1f} GB needed at most")


def make_venv() -> None:
    """Make the virtual environment unless a working one is there."""
    wanted = "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))"
    if (BIN / "python").exists() and quiet([BIN / "python", "-c", wanted])[0] == 0:
        if quiet([BIN / "python", "-m", "pip", "--version"])[0] == 0:
            return
        say("the virtual environment has no pip: making it again")
    shutil.rmtree(VENV, ignore_errors=True)
    system = ["--system-site-packages"] if os.environ.get("TORCH") == "system" else []
    code, text = quiet([sys.executable, "-m", "venv", *system, VENV])
    if code == 0:
        return
    # Debian leaves ensurepip out: an own pip can still fill the environment
    code, _ = quiet([sys.executable, "-m", "venv", *system, "--without-pip", "--clear", VENV])
    pip = [sys.executable, "-m", "pip", "--python", str(BIN / "python"), "install", *PIP_FLAGS, "pip"]
    if code == 0 and quiet(pip)[0] == 0:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    version = ".".join(platform.python_version_tuple()[:2])
    raise Failed(
        f"no virtual environment can be made with {sys.executable}: {last_line(text)}\n"
        f"  next: install python{version}-venv, or name another interpreter: make ... PYTHON=/path/to/python3.11"
    )


def write_pins(path: Path) -> Path:
    """The pinned versions; without torch's own when another torch was asked for."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines(keepends=True)
    other = os.environ.get("TORCH", "")
    path.write_text("".join(line for line in lines if not (other and line.startswith("torch=="))), "utf-8")
    return path


def pinned_torch() -> str:
    """The version of torch in constraints.txt."""
    found = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
    if not found:
        raise Failed("constraints.txt has no line torch==...")
    return found[1]


def install_torch(pins: Path) -> None:
    """Torch first and pinned: a package that pulls it in later would take several GB of CUDA."""
    version = os.environ.get("TORCH") or pinned_torch()
    if version == "system":
        code, text = quiet([BIN / "python", "-c", "import torch; print(torch.__version__)"])
        if code:
            raise Failed(f"TORCH=system, but {sys.executable} has no working torch: {last_line(text)}")
        say(f"torch {last_line(text)} of the system is used")
        return
    have = "import importlib.metadata as m; print(m.version('torch'))"
    if last_line(quiet([BIN / "python", "-c", have])[1]).split("+")[0] == version:
        return
    index = ["--extra-index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
    if os.environ.get("TORCH_INDEX"):
        # the index alone first: its build must win over another of the same version elsewhere
        index = ["--index-url", os.environ["TORCH_INDEX"]]
    cuda = cuda_parts(f"torch=={version}", index)
    if cuda:
        say(f"torch {version} comes with {len(cuda)} CUDA packages here: several GB to fetch and keep.")
        say("  for the small CPU build: Ctrl-C, then make ... TORCH_INDEX=<an index with CPU builds> (see README)")
        check_disk(NEED_CUDA_GB)
    pip_install([f"torch=={version}", *index], pins if not index else None, f"torch {version}")


def cuda_parts(wanted: str, index: list[str]) -> list[str]:
    """Names of the CUDA packages that installing this would bring; asks pip without installing."""
    code, text = quiet(
        [BIN / "python", "-m", "pip", "install", *PIP_FLAGS, "--dry-run", "--report", "-", wanted, *index]
    )
    if code:
        return []  # the installation itself will say what is wrong
    try:
        names = [item["metadata"]["name"] for item in json.loads(text[text.index("{") :])["install"]]
    except (ValueError, KeyError, TypeError):
        return []
    return [n for n in names if n.lower().startswith(("nvidia", "cuda", "triton"))]


def install_hagane(extras: list[str], pins: Path) -> list[str]:
    """Install the package and its extras; returns the optional extras that could not be installed.

    Raises:
        Failed: the core or the development tools cannot be installed.
    """
    if not extras or try_pip(["-e", f".[{','.join(extras)}]"], pins, f"hagane with {', '.join(extras)}") is None:
        if not extras:
            pip_install(["-e", "."], pins, "hagane")
        return []
    say("not all at once; one part after the other")
    pip_install(["-e", "."], pins, "hagane without extras")
    missing = []
    for extra in extras:
        problem = try_pip(["-e", f".[{extra}]"], pins, f"the extra {extra}")
        if problem and extra not in PARTS:
            raise Failed(problem)
        if problem:
            print(f"setup: {problem}", file=sys.stderr)
            missing.append(extra)
    return missing


def pip_install(what: list[str], pins: Path | None, name: str) -> None:
    """Install, or raise Failed with pip's own words."""
    if problem := try_pip(what, pins, name):
        raise Failed(problem)


def try_pip(what: list[str], pins: Path | None, name: str) -> str | None:
    """Install; returns None, or what went wrong. Shows that it is at work, but not pip's chatter."""
    say(f"installing {name} ...")
    command = [BIN / "python", "-m", "pip", "install", *PIP_FLAGS, *what, *(["-c", pins] if pins else [])]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        job = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        every_s = 5 if sys.stdout.isatty() else 30
        while True:
            try:
                code = job.wait(every_s)
                break
            except subprocess.TimeoutExpired:
                say(f"  still at it, {time.monotonic() - started:.0f} s")
            except KeyboardInterrupt:
                job.terminate()
                job.wait()
                raise Failed("interrupted\n  next: run make again; it goes on where it was") from None
        log.seek(0)
        text = log.read()
    if code == 0:
        return None
    wrong = [line for line in text.splitlines() if line.startswith("ERROR")][-3:] or text.splitlines()[-6:]
    return (
        f"{name} could not be installed:\n  " + "\n  ".join(wrong) + "\n  next: check the network, then run make again"
    )


def quiet(command: Sequence[str | Path]) -> tuple[int, str]:
    """Exit code and output of a short command."""
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout if done.returncode == 0 else done.stdout + done.stderr


def last_line(text: str) -> str:
    """Last line that is not empty; "" for none."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
