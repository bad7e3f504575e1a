"""Whose a tensor is, by its name on disk alone: so that an auditor needs neither the model nor its library.

`hagane.model.naming` makes these names; a test holds the two together on a whole model.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

BY_SLOT = ("tokeniser.w_in", "tokeniser.b_in", "tokeniser.w_next", "normaliser.centre", "normaliser.scale")
"""Parameters with a row a channel: NAME.<machine>.<channel>."""
BY_EMBODIMENT = (
    "tokeniser.prompts",
    "tower.w_in",
    "tower.w_out",
    "normaliser.action_centre",
    "normaliser.action_scale",
)
"""Parameters with a row a machine: NAME.<machine>."""
BY_EXPERT = (".moe.router", ".moe.experts.up", ".moe.experts.down")
"""Ends of the names of parameters with a row an expert: NAME.<member>.<number>."""
BY_GATE = ".moe.bias_GE"
"""End of the name of a buffer with a row a machine: NAME.<machine>."""
ANCHOR = "consortium"
"""Owner of what no member owns alone."""

_LAYER = r"(?:trunk|tower)\.layers\.\d+\."
_SHARED = re.compile(
    r"tokeniser\.(?:(?:bytes|text|describe|image|image_next)\.weight|descriptors)"
    r"|(?:trunk|tower)\.norm\.gain|tower\.steps|tower\.(?:time|time_out)\.(?:weight|bias)"
    r"|trunk\.layers\.\d+\.attention\.(?:(?:q|k|v|o)\.weight|(?:q|k)_norm\.gain)"
    r"|trunk\.layers\.\d+\.moe\.(?:shared\.(?:up|down)\.weight|permitted_GE|load_GE|row_E)"
    rf"|{_LAYER}\w+_norm\.gain"
    r"|tower\.layers\.\d+\.(?:(?:qkv|self_out|q|kv|cross_out)\.weight|ffn\.(?:up|down)\.weight)",
    re.ASCII,
)
_EXPERT = re.compile(r"trunk\.layers\.\d+\.moe\.(?:router|experts\.up|experts\.down)\.([^.]+)\.\d+", re.ASCII)
_GATE = re.compile(r"trunk\.layers\.\d+\.moe\.bias_GE\.([^.]+)", re.ASCII)


def owner_of(name: str, machines: Mapping[str, str], members: Container[str]) -> str:
    """The owner of a tensor; "" when its name is none that a model has, so that nobody takes it for the anchor's.

    Args:
        name: on disk.
        machines: owner of every machine that the model knows.
        members: owners of experts.
    """
    if found := _EXPERT.fullmatch(name):
        return found[1] if found[1] in members else ""
    if found := _GATE.fullmatch(name):
        return machines.get(found[1], "")
    for stem in (*BY_SLOT, *BY_EMBODIMENT):
        if name.startswith(f"{stem}."):
            machine, dot, channel = name[len(stem) + 1 :].partition(".")
            return machines.get(machine, "") if bool(dot and channel) == (stem in BY_SLOT) else ""
    return ANCHOR if _SHARED.fullmatch(name) else ""
