"""What a run wants, said without torch: the same as its recipe says."""

from __future__ import annotations

import json

from hagane.cli.wants import NAMED, named_wants
from hagane.train import RECIPES


def test_our_recipes_want_what_is_said_of_them() -> None:
    assert set(NAMED) == set(RECIPES)
    for name, recipe in RECIPES.items():
        config = recipe(("a", "b"))
        told = json.loads(named_wants(name, ("a", "b"), 0))
        assert (told["purpose"], told["steps"]) == (config.purpose, config.step.steps)
        assert tuple(told["datasets"]) == config.datasets and not config.split and told["reads"] == []
    assert json.loads(named_wants("tiny", (), 7))["steps"] == 7
    assert named_wants("path/to/file.py:recipe", (), 0) == ""
