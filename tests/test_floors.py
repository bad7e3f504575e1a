"""The house holds: a room imports only from floors below, and small rooms stay without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "hagane"
FLOORS: dict[int, set[str]] = {
    4: {"cli", "demo", "console"},
    3: {"train", "evaluate", "serve", "plan", "union"},
    2: {"catalog", "engine", "policy"},
    1: {"model", "worlds", "intake", "guard", "seal", "jail", "wire"},
    0: {"terms"},
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
# the doors join siblings: the verbs open the demo and the page, the demo writes the page's story
JOINS = {("cli", "console"), ("cli", "demo"), ("demo", "console")}
TORCH_ROOMS = {"model", "engine", "policy", "train", "plan", "union"}
WITHOUT_TORCH = ["terms", "guard", "seal", "jail", "intake", "wire", "catalog", "worlds", "console", "cli"]


def imports_of(path: Path) -> list[tuple[int, str]]:
    """Line and full module name of every import in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the full module name"
            found.append((node.lineno, node.module or ""))
    return found


def violations(room: str, path: Path) -> list[str]:
    """What a file of `room` imports against the floors."""
    bad = []
    for line, module in imports_of(path):
        if module.split(".")[0] == "torch" and room not in TORCH_ROOMS:
            bad.append(f"{path}:{line}: {room} imports torch")
        if not module.startswith("hagane."):
            continue
        other = module.split(".")[1]
        if other == room:
            continue
        below = FLOOR[other] < FLOOR[room]
        if not below and (room, other) not in JOINS:
            bad.append(f"{path}:{line}: {room} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})")
    return bad


def test_every_room_stands_on_its_floor() -> None:
    rooms = {p.name for p in SRC.iterdir() if (p / "__init__.py").exists()}
    assert rooms <= set(FLOOR), f"rooms without a floor: {rooms - set(FLOOR)}"
    bad = [v for room in sorted(rooms) for path in sorted((SRC / room).rglob("*.py")) for v in violations(room, path)]
    assert not bad, "\n".join(bad)


def test_the_check_sees_a_planted_fault(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text("import torch\nfrom hagane.serve.server import Server\n")
    assert len(violations("guard", planted)) == 2


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_room_imports_without_torch(room: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import hagane.{room}; assert not sys.modules.get('torch')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_stay_short() -> None:
    long = {str(p): n for p in SRC.rglob("*.py") if (n := len(p.read_text("utf-8").splitlines())) > 350}
    assert not long, f"one idea a file, at most 350 lines: {long}"
