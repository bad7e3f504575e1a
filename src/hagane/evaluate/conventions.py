"""The detector of silent zeros: a policy whose action convention, scale or order is wrong scores nothing, and
nothing says why. An expert episode replayed through the policy's own encode and decode says it before a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hagane.terms import Embodiment, HistoryBuffer, Observation, Window
from hagane.worlds import Pilot, World, fly

ROUNDTRIP = 1e-3
"""Largest error of encode and decode, as a share of the action's range."""
SPREAD = (0.02, 20.0)
"""Standard deviation of a normalised column over an expert episode must lie in this range, where it moves."""
CENTRE = 20.0
"""A normalised column's mean farther than this from 0 comes of statistics of another machine."""


@runtime_checkable
class Conventions(Protocol):
    """What a policy shows of its own encode and decode."""

    def roundtrip_actions(self, embodiment: str, actions_NHA: NDArray[np.float32]) -> NDArray[np.float32]:
        """Actions encoded and decoded again."""
        ...

    def normalised(self, observation: Observation) -> Mapping[str, NDArray[np.float32]]:
        """By channel, what the network sees."""
        ...


@dataclass(frozen=True)
class Check:
    """One comparison."""

    name: str
    """What was compared."""
    passed: bool
    """Whether it holds."""
    detail: str
    """With figures."""


class Playback:
    """A pilot that plays recorded commands again."""

    def __init__(self, commands_THA: NDArray[np.float32]) -> None:
        self.commands, self.at = commands_THA, 0

    def reset(self, world: World) -> None:
        """From the first command."""
        self.at = 0

    def act(self, world: World) -> NDArray[np.float32]:
        """[N, A]; the last command again after the end."""
        out: NDArray[np.float32] = self.commands[min(self.at, len(self.commands) - 1)]
        self.at += 1
        return out


class Watching:
    """Passes a pilot's commands on, through the policy's encode and decode, and keeps what was commanded."""

    def __init__(self, pilot: Pilot, policy: Conventions | None) -> None:
        self.pilot, self.policy = pilot, policy
        self.commands: list[NDArray[np.float32]] = []

    def reset(self, world: World) -> None:
        """Reset the pilot inside."""
        self.pilot.reset(world)
        self.commands = []

    def act(self, world: World) -> NDArray[np.float32]:
        """[N, A] the pilot's command as it comes out of the policy's decode."""
        command_NA = np.asarray(self.pilot.act(world), np.float32)
        self.commands.append(command_NA)
        if self.policy is None:
            return command_NA
        return self.policy.roundtrip_actions(world.embodiment.name, command_NA[:, None])[:, 0]


def check_conventions(policy: Conventions, world: World, seeds: Sequence[int]) -> tuple[Check, ...]:
    """Compare a policy's conventions with an expert's episodes.

    Args:
        policy: shows its encode and decode.
        world: flies the expert, once as it is and once through the policy's encode and decode.
        seeds: of the expert's episodes; a few.
    """
    case, seed = world.cases[0], seeds[0]
    observation = expert_observations(world, seeds)
    expert = Watching(world.pilots["expert"](), None)
    direct = float(fly(world, case, [seed], expert).scores_N[0])
    actions_TA = np.concatenate(expert.commands)
    through = float(fly(world, case, [seed], Watching(world.pilots["expert"](), policy)).scores_N[0])
    again = float(fly(world, case, [seed], Playback(np.stack(expert.commands))).scores_N[0])
    near = abs(direct) * 0.05 + 0.05
    return (
        check_roundtrip(policy, world.embodiment, actions_TA),
        *check_scales(policy, observation),
        *check_order(policy, observation),
        Check("expert through encode and decode", abs(through - direct) <= near, f"{direct:.3f}, then {through:.3f}"),
        Check("recorded commands replayed", abs(again - direct) <= near, f"{direct:.3f}, then {again:.3f}"),
    )


def expert_observations(world: World, seeds: Sequence[int], every: int = 10) -> Observation:
    """What the machine shows while the expert flies each case from each seed: every tenth control step."""
    seen: list[Observation] = []
    e = world.embodiment
    for case in world.cases:
        expert = world.pilots["expert"]()
        world.reset(case, list(seeds))
        expert.reset(world)
        history = HistoryBuffer(e, len(seeds))
        for t in range(world.step_limit):
            if not world.alive().all():
                break
            history.push(world.observe(), np.full(len(seeds), t * e.step_ns, np.int64))
            if t % every == every - 1:
                seen.append(history.observation(world.tasks()))
            history.push_action(world.step(expert.act(world)))
    return joined(seen)


def joined(parts: Sequence[Observation]) -> Observation:
    """Observations of one machine, end to end."""
    channels = {}
    for name in parts[0].channels:
        windows = [p.channels[name] for p in parts]
        values = np.concatenate([w.values for w in windows])
        valid = np.concatenate([w.valid for w in windows])
        channels[name] = Window(values, valid, np.concatenate([w.age_s for w in windows]))
    times_ns = np.concatenate([p.time_ns for p in parts])
    return Observation(parts[0].embodiment, times_ns, channels, tuple(t for p in parts for t in p.tasks))


def check_roundtrip(policy: Conventions, embodiment: Embodiment, actions_TA: NDArray[np.float32]) -> Check:
    """Encode and decode give the actions back, column by column."""
    back_TA = policy.roundtrip_actions(embodiment.name, actions_TA[:, None])[:, 0]
    span_A = np.maximum(np.ptp(actions_TA, axis=0), 1e-6)
    error_A = np.abs(back_TA - actions_TA).max(0) / span_A
    worst = int(error_A.argmax())
    return Check(
        "encode and decode of actions", bool(error_A[worst] <= ROUNDTRIP), f"column {worst}: {error_A[worst]:.2e}"
    )


def check_scales(policy: Conventions, observation: Observation) -> tuple[Check, ...]:
    """What the network sees of each channel is near unit scale: statistics of this machine, in this order."""
    checks = []
    seen = policy.normalised(observation)
    for name, window in observation.channels.items():
        if window.values.dtype == np.uint8:
            continue
        x = seen[name][window.valid] if window.valid.any() else np.zeros((1, 1))
        raw = window.values[window.valid] if window.valid.any() else np.zeros((1, 1))
        x, raw = x.reshape(-1, x.shape[-1]), raw.reshape(-1, raw.shape[-1])
        moves = raw.std(0) > 1e-4 * (np.abs(raw).max(0) + 1e-9)
        spread, centre = x.std(0), np.abs(x.mean(0))
        low = bool((spread[moves] >= SPREAD[0]).all()) and bool((spread[moves] <= SPREAD[1]).all())
        good = low and bool((centre <= CENTRE).all())
        figures = f"spread {spread.min():.2f} to {spread.max():.2f}, mean up to {centre.max():.2f}"
        checks.append(Check(f"scale of {name}", good, figures))
    return tuple(checks)


def check_order(policy: Conventions, observation: Observation) -> tuple[Check, ...]:
    """Every column that the network sees rises with its own raw column: none is swapped, turned or left out.

    Holds for any normaliser that keeps order, clipping included.
    """
    checks = []
    seen = policy.normalised(observation)
    for name, window in observation.channels.items():
        if window.values.dtype == np.uint8 or not window.valid.any():
            continue
        raw = window.values[window.valid].reshape(-1, window.values.shape[-1])
        x = seen[name][window.valid].reshape(raw.shape)
        by_value = np.argsort(raw, axis=0, kind="stable")
        rises = np.diff(np.take_along_axis(x, by_value, 0), axis=0)
        falls = (rises < -1e-4 * (np.ptp(x, axis=0) + 1e-9)).mean(0) if len(rises) else np.zeros(raw.shape[1])
        worst = int(falls.argmax())
        detail = f"column {worst} falls in {falls[worst]:.1%} of steps where the reading rises"
        checks.append(Check(f"order of {name}", bool(falls[worst] == 0), detail))
    return tuple(checks)
