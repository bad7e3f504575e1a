"""What several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data(*parts: str) -> Path:
    """A file of the real logs kept outside the project; skips the test, with the reason, where they are absent."""
    root = Path(os.environ.get("HAGANE_SHARED", Path(__file__).parents[2] / "shared"))
    path = root.joinpath("data", *parts)
    if not path.exists():
        pytest.skip(f"real logs not at hand: {path.relative_to(root.parent) if root in path.parents else path}")
    return path
