"""The public names of every room are a promise: a change shows in tests/public_names.txt.

After a change on purpose: `make names`, and say in the commit why.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import hagane

LIST = Path(__file__).with_name("public_names.txt")


def rooms() -> list[str]:
    """Names of all rooms."""
    return sorted(p.parent.name for p in Path(hagane.__file__).parent.glob("*/__init__.py"))


def public_names() -> str:
    """One line a public name: room.name, sorted."""
    lines = []
    for room in rooms():
        module = importlib.import_module(f"hagane.{room}")
        lines += [f"{room}.{name}" for name in getattr(module, "__all__", [])]
    return "".join(f"{line}\n" for line in sorted(lines))


def test_public_names_are_those_of_the_list() -> None:
    now, promised = set(public_names().split()), set(LIST.read_text("utf-8").split())
    assert now == promised, f"new: {sorted(now - promised)}; gone: {sorted(promised - now)}; if on purpose: make names"


def test_every_public_name_exists_and_all_is_sorted_into_no_repeats() -> None:
    for room in rooms():
        module = importlib.import_module(f"hagane.{room}")
        names = getattr(module, "__all__", [])
        assert len(set(names)) == len(names), room
        for name in names:
            assert getattr(module, name, None) is not None, f"{room}.{name}"
            assert not name.startswith("_"), f"{room}.{name}"


if __name__ == "__main__":
    LIST.write_text(public_names(), "utf-8")
    print(f"{LIST}: {len(public_names().split())} names")
