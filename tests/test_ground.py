"""The ground: make targets, pins, the set-up script's plain words, and the CI script's exit codes."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PINS = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("TORCH", "TORCH_INDEX", "VENV"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("hagane_setup", ROOT / "scripts" / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_make_help_names_every_target() -> None:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    done = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "test-all", "check", "bench", "bench-lerobot", "names", "setup", "clean"):
        assert f"make {target} " in done.stdout


def test_pins_are_exact_one_a_line_and_name_no_host() -> None:
    for line in PINS:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
    names = [line.split("==")[0].lower().replace("_", "-") for line in PINS]
    assert len(set(names)) == len(names)


def test_every_declared_dependency_is_pinned() -> None:
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in PINS}
    wanted = [*PROJECT["dependencies"], *(d for e in PROJECT["optional-dependencies"].values() for d in e)]
    names = {re.split(r"[<>=!\[; ]", d)[0].lower() for d in wanted}
    assert names <= pinned, names - pinned


def test_installed_versions_are_the_pinned_ones_or_said_otherwise() -> None:
    """Only what the set-up itself checks: torch without its build tag."""
    import importlib.metadata as metadata

    pin = next(line for line in PINS if line.startswith("torch==")).split("==")[1]
    found = metadata.version("torch").split("+")[0]
    if found != pin:
        pytest.skip(f"torch {found} is used instead of the pinned {pin}")


def run_setup(**env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(ROOT / "scripts" / "setup.sh")],
        env={"HOME": os.environ.get("HOME", "/"), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_an_interpreter_it_says_so(tmp_path: Path) -> None:
    for tool in ("dirname",):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    done = run_setup(PATH=str(tmp_path))
    assert done.returncode == 1
    assert "no Python 3.11, 3.12 or 3.13 found" in done.stderr
    assert "PYTHON=" in done.stderr


def test_a_wrong_interpreter_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = run_setup(PATH=os.environ["PATH"], PYTHON=str(old))
    assert done.returncode == 1
    assert "is no working Python" in done.stderr


def test_too_little_disk_is_said_before_anything_is_fetched(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup_py, "VENV", tmp_path / "venv")
    monkeypatch.setattr(setup_py, "BIN", tmp_path / "venv" / "bin")
    monkeypatch.setattr(setup_py.shutil, "disk_usage", lambda path: SimpleNamespace(free=2.5e9))
    monkeypatch.setattr(setup_py, "make_venv", lambda: pytest.fail("went on"))
    assert setup_py.main(["worlds"]) == 1
    assert "2.5 GB free" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_cuda_build_is_announced(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = '{"install": [{"metadata": {"name": "torch"}}, {"metadata": {"name": "nvidia-cublas-cu13"}}]}'
    monkeypatch.setattr(setup_py, "quiet", lambda command: (0, report if "--report" in command else "2.0.0"))
    done: list[Any] = []
    monkeypatch.setattr(setup_py, "try_pip", lambda *a: done.append(a))
    monkeypatch.setattr(setup_py.shutil, "disk_usage", lambda path: SimpleNamespace(free=50e9))
    setup_py.install_torch(tmp_path)
    said = capsys.readouterr().out
    assert "1 CUDA packages" in said and "TORCH_INDEX" in said
    assert done[0][0] == [f"torch=={setup_py.pinned_torch()}"]


def test_an_index_is_passed_through(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_INDEX", "file:///wheels")
    monkeypatch.setenv("TORCH", "2.12.0")
    monkeypatch.setattr(setup_py, "quiet", lambda command: (1, ""))
    done: list[Any] = []
    monkeypatch.setattr(setup_py, "try_pip", lambda *a: done.append(a))
    setup_py.install_torch(tmp_path)
    assert done[0][0] == ["torch==2.12.0", "--index-url", "file:///wheels"]
    pins = setup_py.write_pins(tmp_path / "pins.txt").read_text()
    assert "torch==" not in pins and "numpy==" in pins


def test_an_extra_that_fails_is_named_and_the_core_goes_on(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(setup_py, "try_pip", lambda what, pins, name: "no wheel" if "worlds" in what[1] else None)
    assert setup_py.install_hagane(["intake", "worlds"], tmp_path) == ["worlds"]
    monkeypatch.setattr(setup_py, "try_pip", lambda what, pins, name: "no wheel" if "dev" in what[1] else None)
    with pytest.raises(setup_py.Failed, match="no wheel"):
        setup_py.install_hagane(["dev", "intake"], tmp_path)
    monkeypatch.setattr(setup_py, "try_pip", lambda what, pins, name: "no wheel")
    with pytest.raises(setup_py.Failed, match="no wheel"):
        setup_py.install_hagane(["worlds"], tmp_path)


def test_what_cannot_run_on_other_systems_is_said(setup_py: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    setup_py.say_what_cannot_run("Darwin", "arm64")
    assert "network test" in capsys.readouterr().out
    setup_py.say_what_cannot_run("Linux", "x86_64")
    assert capsys.readouterr().out == ""
    for system, machine in (("Darwin", "x86_64"), ("Windows", "AMD64")):
        with pytest.raises(setup_py.Failed):
            setup_py.say_what_cannot_run(system, machine)


def run_ci(tmp_path: Path, make: str) -> subprocess.CompletedProcess[str]:
    """.ci/run in a folder of its own, with a make that only pretends."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "make").write_text("#!/bin/bash\n" + make)
    (tmp_path / "bin" / "make").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([tmp_path / ".ci" / "run"], env=env, capture_output=True, text=True, check=False)


CLOSING = "12 passed, 3 skipped in 61.20s (0:01:01)"


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_ci_prints_the_closing_line_last_and_hides_the_dots(tmp_path: Path) -> None:
    pretend = f'[ "${{!#}}" = test ] && echo "....  [100%]" && echo "{CLOSING}"; exit 0'
    done = run_ci(tmp_path, pretend)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == CLOSING
    assert "[100%]" not in done.stdout


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
@pytest.mark.parametrize("target", ["check", "test"])
def test_ci_fails_when_a_target_fails(tmp_path: Path, target: str) -> None:
    closing = "1 failed, 11 passed in 3.10s"
    done = run_ci(tmp_path, f'[ "${{!#}}" = test ] && echo "{closing}"; [ "${{!#}}" != {target} ]')
    assert done.returncode != 0
    assert f"FAILED: make {target}" in done.stdout
    if target == "test":
        assert done.stdout.splitlines()[-1] == closing


def test_scripts_can_be_run() -> None:
    for path in (ROOT / ".ci" / "run", ROOT / "scripts" / "setup.sh"):
        assert path.stat().st_mode & stat.S_IXUSR, f"chmod +x {path}"


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_weights_and_no_heaps_of_data_in_git() -> None:
    heavy = {str(p.relative_to(ROOT)) for p in tracked() if p.stat().st_size > 1_000_000}
    assert not heavy, f"over 1 MB: {heavy}"
    weights = {p.name for p in tracked() if p.suffix in {".safetensors", ".pt", ".pth", ".onnx", ".ckpt", ".pkl"}}
    assert not weights, f"every run trains from scratch: {weights}"


def test_python_is_one_of_those_promised() -> None:
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    assert (3, 11) <= sys.version_info[:2] <= (3, 13)
