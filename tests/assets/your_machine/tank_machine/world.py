"""N water tanks that drain through a hole while the inlet valve holds their level."""

from pathlib import Path

import numpy as np

from hagane.terms import Embodiment, Reading, load_toml
from hagane.worlds import Drawing, Noise

AREA_M2, HOLE_M2, GRAVITY, STEP_S = 0.5, 0.0025, 9.81, 0.5


class TankWorld:
    embodiment = load_toml(Path(__file__).with_name("tank.toml"), Embodiment)
    cases = ("half-full", "empty")
    measure = "share of time within 5 cm of the target, higher is better"
    step_limit = 120
    default_noise = Noise("ar", (1.0,))

    def __init__(self):
        self.pilots = {
            "constant: 10 L/s": lambda: Pilot(lambda w: np.full(len(w.level), 10.0)),
            "classical: P": lambda: Pilot(lambda w: 250.0 * (w.target - w.level)),
            "expert": lambda: Pilot(lambda w: w.outflow() + 1000 * AREA_M2 * (w.target - w.level) / STEP_S),
        }

    def reset(self, case, seeds_N):
        draws_N = np.array([np.random.default_rng(seed).uniform(0.3, 1.7, 2) for seed in seeds_N])
        self.target, self.level = draws_N[:, 0], draws_N[:, 1] * (case == "half-full")
        self.steps, self.near = 0, np.zeros(len(seeds_N))

    def observe(self):
        valid, age_s = np.ones(len(self.level), bool), np.zeros(len(self.level), np.float32)
        columns = {"level": self.level, "target": self.target}
        return {name: Reading(v[:, None].astype(np.float32), valid, age_s) for name, v in columns.items()}

    def step(self, commands_NA):
        inflow_lps = np.clip(commands_NA[:, 0], 0.0, 20.0)
        self.level = np.clip(self.level + (inflow_lps - self.outflow()) / 1000 / AREA_M2 * STEP_S, 0.0, 2.0)
        self.near += np.abs(self.target - self.level) < 0.05
        self.steps += 1
        return inflow_lps[:, None].astype(np.float32)

    def outflow(self):
        return 1000 * HOLE_M2 * np.sqrt(2 * GRAVITY * self.level)  # L/s, Torricelli

    def tasks(self):
        return ("hold the level at its target",) * len(self.level)

    def alive(self):
        return np.full(len(self.level), self.steps < self.step_limit)

    def scores(self):
        return self.near / max(self.steps, 1)

    def details(self):
        return {}

    def draw(self, copy):
        return Drawing("tank", {"level": float(self.level[copy]), "target": float(self.target[copy])})


class Pilot:
    def __init__(self, rule):
        self.rule = rule

    def reset(self, world):
        pass

    def act(self, world):
        return np.clip(self.rule(world), 0.0, 20.0)[:, None].astype(np.float32)
