"""Every public noun says what it is: classes, functions, methods, and each field with its unit or shape."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "hagane"
ROOMS = ("terms", "seal", "jail", "cli")


def undocumented(source: str) -> list[str]:
    """Public classes, functions, methods and dataclass fields without a docstring."""
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            missing += [] if ast.get_docstring(node) else [node.name]
            if isinstance(node, ast.ClassDef):
                missing += [f"{node.name}.{name}" for name in _members_without(node)]
    return missing


def _members_without(node: ast.ClassDef) -> list[str]:
    missing = []
    dataclass = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
    for item, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_") and not ast.get_docstring(item):
            missing.append(item.name)
        if dataclass and isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            missing += [] if told or item.target.id.startswith("_") else [item.target.id]
    return missing


FILES = [p for room in ROOMS for p in sorted((SRC / room).glob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_everything_public_says_what_it_is(path: Path) -> None:
    assert not undocumented(path.read_text("utf-8"))


def test_the_check_sees_planted_faults() -> None:
    planted = '"""m"""\n@dataclass\nclass A:\n    """a"""\n    x: int\n    y: int\n    """y"""\n    def f(self): ...\n'
    assert undocumented(planted) == ["A.x", "A.f"]
    assert undocumented("def g(): ...\n") == ["the module", "g"]
