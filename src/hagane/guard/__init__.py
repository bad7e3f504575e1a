"""Guard: the only way to a machine. Checks every chunk and every tick, and falls back by itself.

It runs beside the machine, without torch. It claims no conformity with any safety standard: it keeps commands
inside limits that the integrator wrote down, and is no substitute for the machine's own limits and trips.
"""

from hagane.guard.bounds import Bounds, bounds_of, start_of
from hagane.guard.envelope import Envelope, Limit, envelope_names, load_envelope
from hagane.guard.guard import Guard, GuardedAction, Intervention, State

__all__ = [
    "Bounds",
    "Envelope",
    "Guard",
    "GuardedAction",
    "Intervention",
    "Limit",
    "State",
    "bounds_of",
    "envelope_names",
    "load_envelope",
    "start_of",
]
