"""docs/your-machine.md: a package of one's own adds a world without an edit of hagane, and the page quotes it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EXAMPLE = HERE / "assets" / "your_machine"
PAGE = HERE.parent / "docs" / "your-machine.md"
QUOTE = re.compile(r"\*\*`([^`]+)`\*\*\n\n```(?:toml|python)\n(.*?)```", re.S)

SCRIPT = """
import json, sys
import hagane.worlds as worlds

world = worlds.make("tank")
shares = {}
for name, pilot in world.pilots.items():
    shares[name] = worlds.fly(world, "half-full", range(20), pilot()).scores_N.mean()
first, *_ = worlds.collect(world, "empty", range(2), world.pilots["expert"]())
print(json.dumps({
    "names": worlds.names(), "file": sys.modules[type(world).__module__].__file__, "shares": shares, "id": first.id,
    "task": first.task, "streams": {name: list(s.values.shape) for name, s in first.streams.items()},
}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example installed as a wheel in a folder of its own; no network, no pip."""
    pytest.importorskip("hatchling", reason="hatchling builds the example: pip install hagane[dev]")
    work = tmp_path_factory.mktemp("your-machine")
    source = shutil.copytree(EXAMPLE, work / "source", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(work / "dist")]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = (work / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(work / "site")
    return work / "site"


def run(code: str, site: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_an_installed_world_is_found_flown_and_recorded(site: Path) -> None:
    done = run(SCRIPT, site)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {"tank", "arm"} <= set(said["names"])
    assert Path(said["file"]).is_relative_to(site)
    assert said["id"] == "tank/empty/000000" and said["task"]
    assert said["streams"] == {name: [120, 1] for name in ("level", "target", "inflow", "inflow.applied")}
    shares = said["shares"]
    assert shares["constant: 10 L/s"] < shares["classical: P"] < shares["expert"]


def test_the_page_example_runs(site: Path) -> None:
    (code,) = re.findall(r"```python\n(import hagane\.worlds\n.*?)```", PAGE.read_text("utf-8"), re.S)
    done = run(code, site)
    assert done.returncode == 0, done.stderr
    assert "tank/half-full/000000 (120, 1)" in done.stdout


def test_a_wrong_key_in_the_toml_names_its_line(site: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(site, tmp_path / "site")
    toml = broken / "tank_machine" / "tank.toml"
    toml.write_text(toml.read_text("utf-8").replace("rate_hz", "rate_khz"), "utf-8")
    done = run(SCRIPT, broken)
    assert done.returncode != 0
    assert "tank.toml:5" in done.stderr and "did you mean `rate_hz`?" in done.stderr


def test_the_page_quotes_the_running_files() -> None:
    quotes = dict(QUOTE.findall(PAGE.read_text("utf-8")))
    files = {str(p.relative_to(EXAMPLE)) for p in EXAMPLE.rglob("*") if p.suffix in (".toml", ".py")}
    assert set(quotes) == files - {"tank_machine/__init__.py"}
    for name, text in quotes.items():
        assert text == (EXAMPLE / name).read_text("utf-8"), f"the page and {name} differ"
