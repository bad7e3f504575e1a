"""Physics: simulated machines with seeded resets, experts and classical baselines, N copies at a time."""

from hagane.worlds.base import Drawing, Pilot, World
from hagane.worlds.registry import make, names
from hagane.worlds.rollout import Noise, Outcome, collect, fly

__all__ = ["Drawing", "Noise", "Outcome", "Pilot", "World", "collect", "fly", "make", "names"]
