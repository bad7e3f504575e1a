"""The kernel's walls around code that sees members' data: what runs inside reads what the plan binds, and no more."""

from hagane.jail.plan import LAYERS, Bind, Layer, Layers, Plan, python_env, python_reads, system_reads
from hagane.jail.run import Jailed, start

__all__ = [
    "LAYERS",
    "Bind",
    "Jailed",
    "Layer",
    "Layers",
    "Plan",
    "python_env",
    "python_reads",
    "start",
    "system_reads",
]
