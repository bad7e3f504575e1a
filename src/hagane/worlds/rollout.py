"""Runs a pilot in a world: `collect` records demonstrations, `fly` only scores them.

Demonstrations carry recovery: noise is added to the executed commands, so copies leave the pilot's path, while
the recorded label stays the pilot's clean command for the state it finds itself in (DART, arXiv 1703.09327).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hagane.terms import APPLIED, Channel, ConfigError, Embodiment, Episode, Reading, Stream, digest_value
from hagane.worlds.base import Drawing, HearsApplied, Pilot, World


@dataclass(frozen=True)
class Noise:
    """Noise on executed commands, in the action channels' units; a function of the copy's seed only."""

    kind: Literal["white", "ar"] = "white"
    """white: a fresh draw each step; ar: x_t = rho x_(t-1) + sqrt(1 - rho^2) w_t, which drifts slowly."""
    scale: tuple[float, ...] = (0.0,)
    """Standard deviation, one for all action columns or one a column."""
    rho: float = 0.9
    """Correlation from step to step; used by "ar" only."""

    def __post_init__(self) -> None:
        if self.kind not in ("white", "ar"):
            raise ConfigError(f"unknown noise {self.kind!r}", next_step="use white or ar")
        if not self.scale or any(s < 0 for s in self.scale) or not 0 <= self.rho < 1:
            raise ConfigError("noise needs scales of at least 0 and 0 <= rho < 1")

    def draw(self, seed: int, steps: int, columns: int) -> NDArray[np.float32]:
        """[steps, A] noise of the copy with that seed.

        Raises:
            ConfigError: as many scales as neither 1 nor A.
        """
        if len(self.scale) not in (1, columns):
            raise ConfigError(f"{len(self.scale)} noise scales for {columns} action columns")
        noise_TA = np.random.default_rng([seed, 0x6E6F6973]).standard_normal((steps, columns))
        if self.kind == "ar":
            fresh = float(np.sqrt(1 - self.rho**2))
            for t in range(1, steps):
                noise_TA[t] = self.rho * noise_TA[t - 1] + fresh * noise_TA[t]
        scaled_TA: NDArray[np.float32] = (noise_TA * np.asarray(self.scale)).astype(np.float32)
        return scaled_TA


QUIET = Noise()
"""No noise."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """How N copies went."""

    scores_N: NDArray[np.float64]
    """[N] final scores, see `World.measure`."""
    details: Mapping[str, NDArray[np.float64]]
    """Terms of the score by name, [N] each."""
    steps_N: NDArray[np.int64]
    """[N] control steps that each copy lived."""
    drawings: Mapping[int, tuple[Drawing, ...]] = field(default_factory=dict)
    """Frames of the watched copies by their index in the seeds."""


def collect(
    world: World,
    case: str,
    seeds: Sequence[int],
    pilot: Pilot,
    noise: Noise | None = None,
    *,
    first_id: int = 0,
    start_ns: int = 0,
    at_once: int = 64,
) -> Iterator[Episode]:
    """Record one episode a seed, in the order of seeds, `at_once` copies stepped together.

    The action channel `a` holds the pilot's clean commands, `a.applied` what the actuators did (noise and
    limits included). Streams end with the copy. A sample's time is the control time less its age, where the
    channel's own `delay_s` is no age: a log stamps arrivals.

    Args:
        world: the world; its copies are reset here.
        case: one of `world.cases`.
        seeds: one a copy.
        pilot: who steers.
        noise: added to what is executed, never to what is recorded as command; None takes the world's own
            `default_noise`, or no noise where it has none. `QUIET` is no noise.
        first_id: number of the first episode; ids read "arm/pick-place-v3/000123".
        start_ns: time of the first sample.
        at_once: most copies stepped together (memory only: copies do not depend on each other).

    Raises:
        ConfigError: unknown case, commands of the wrong shape, noise of the wrong width.
    """
    _check_case(world, case)
    if noise is None:
        noise = getattr(world, "default_noise", QUIET)
    for at in range(0, len(seeds), at_once):
        part = list(seeds[at : at + at_once])
        tape = _Tape(world.embodiment, len(part), world.step_limit)
        noise_NTA = np.stack([noise.draw(s, world.step_limit, world.embodiment.action_width) for s in part])
        world.reset(case, part)
        pilot.reset(world)
        tasks = world.tasks()
        for t in range(world.step_limit):
            alive_N = world.alive().copy()
            if not alive_N.any():
                break
            readings = world.observe()
            command_NA = _command(world, pilot, len(part))
            applied_NA = world.step(command_NA + noise_NTA[:, t])
            _tell(pilot, applied_NA)
            tape.write(t, readings, command_NA, applied_NA, alive_N)
        scores_N = world.scores()
        for i, seed in enumerate(part):
            name = f"{world.embodiment.name}/{case}/{first_id + at + i:06d}"
            made = {"world": world.embodiment, "case": case, "seed": int(seed), "noise": noise, "start_ns": start_ns}
            outcome = _outcome(world.measure, float(scores_N[i]))
            streams = tape.cut(i, start_ns)
            digest = digest_value({**made, "pilot": type(pilot).__name__})
            yield Episode(name, world.embodiment.name, streams, tasks[i], outcome, digest)


def fly(
    world: World,
    case: str,
    seeds: Sequence[int],
    pilot: Pilot,
    *,
    watch: Sequence[int] = (),
    every: int = 1,
    at_once: int = 64,
) -> Outcome:
    """Run a pilot without noise and score it.

    Args:
        world: the world; its copies are reset here.
        case: one of `world.cases`.
        seeds: one a copy.
        pilot: who steers.
        watch: indices into `seeds` of the copies to draw.
        every: control steps between two frames; the last state is always drawn.
        at_once: most copies stepped together.

    Raises:
        ConfigError: unknown case, commands of the wrong shape.
    """
    _check_case(world, case)
    scores, steps, frames = [], [], {i: [] for i in watch}  # type: tuple[Any, Any, dict[int, list[Drawing]]]
    details: dict[str, list[NDArray[np.float64]]] = {}
    for at in range(0, len(seeds), at_once):
        part = list(seeds[at : at + at_once])
        world.reset(case, part)
        pilot.reset(world)
        steps_N = np.zeros(len(part), np.int64)
        here = [i for i in frames if at <= i < at + len(part)]
        for t in range(world.step_limit):
            alive_N = world.alive().copy()
            if not alive_N.any():
                break
            for i in here:
                if alive_N[i - at] and t % every == 0:
                    frames[i].append(world.draw(i - at))
            steps_N += alive_N
            _tell(pilot, world.step(_command(world, pilot, len(part))))
        for i in here:
            frames[i].append(world.draw(i - at))
        scores.append(np.array(world.scores(), np.float64))
        steps.append(steps_N)
        for key, value in world.details().items():
            details.setdefault(key, []).append(np.array(value, np.float64))
    if not scores:
        return Outcome(np.zeros(0), {}, np.zeros(0, np.int64))
    joined = {key: np.concatenate(value) for key, value in details.items()}
    drawn = {i: tuple(f) for i, f in frames.items()}
    return Outcome(np.concatenate(scores), joined, np.concatenate(steps), drawn)


class _Tape:
    """Preallocated [steps, N, ...] columns of everything that is recorded."""

    def __init__(self, embodiment: Embodiment, size: int, steps: int) -> None:
        self.embodiment = embodiment
        self.channels = [c for c in embodiment.observe if c.kind != "text"]
        self.values: dict[str, NDArray[Any]] = {}
        self.valid: dict[str, NDArray[np.bool_]] = {}
        self.age_s: dict[str, NDArray[np.float32]] = {}
        for c in self.channels:
            dtype = np.uint8 if c.kind == "image" else np.float32
            flags = (c.places,) if c.kind == "set" else ()
            self.values[c.name] = np.zeros((steps, size, *c.shape), dtype)
            self.valid[c.name] = np.zeros((steps, size, *flags), np.bool_)
            self.age_s[c.name] = np.zeros((steps, size), np.float32)
        self.command_TNA = np.zeros((steps, size, embodiment.action_width), np.float32)
        self.applied_TNA = np.zeros_like(self.command_TNA)
        self.length_N = np.zeros(size, np.int64)

    def write(
        self,
        t: int,
        readings: Mapping[str, Reading],
        command_NA: NDArray[np.float32],
        applied_NA: NDArray[np.float32],
        alive_N: NDArray[np.bool_],
    ) -> None:
        for c in self.channels:
            if c.name not in readings:
                raise ConfigError(f"the world gave no reading of {c.name!r}", where=f"world {self.embodiment.name!r}")
            reading = readings[c.name]
            self.values[c.name][t], self.valid[c.name][t] = reading.values, reading.valid
            self.age_s[c.name][t] = reading.age_s
        self.command_TNA[t], self.applied_TNA[t] = command_NA, applied_NA
        self.length_N += alive_N

    def cut(self, i: int, start_ns: int) -> dict[str, Stream]:
        """Streams of copy i, as long as it lived; copies of the arrays, so the tape can go."""
        n = int(self.length_N[i])
        times_ns = start_ns + self.embodiment.step_ns * np.arange(n, dtype=np.int64)
        streams = {}
        for c in self.channels:
            # whole microseconds: float32 ages would otherwise jitter the stamps
            late_us = np.rint((self.age_s[c.name][:n, i].astype(np.float64) - c.delay_s) * 1e6)
            stamps_ns = times_ns - 1000 * np.maximum(late_us, 0).astype(np.int64)
            # a slower sensor shows one sample for several control steps: record it once
            new = np.diff(stamps_ns, prepend=stamps_ns[:1] - 1) != 0
            values, valid = self.values[c.name][:n, i][new], self.valid[c.name][:n, i][new]
            streams[c.name] = Stream(stamps_ns[new], values, valid, c.unit)
        at = 0
        for c in self.embodiment.act:
            columns = slice(at, at + c.columns)
            at += c.columns
            streams[c.name] = _plain(c, times_ns, self.command_TNA[:n, i, columns])
            streams[c.name + APPLIED] = _plain(c, times_ns, self.applied_TNA[:n, i, columns])
        return streams


def _plain(channel: Channel, times_ns: NDArray[np.int64], values: NDArray[np.float32]) -> Stream:
    return Stream(times_ns.copy(), values.copy(), np.ones(len(values), np.bool_), channel.unit)


def _command(world: World, pilot: Pilot, size: int) -> NDArray[np.float32]:
    command_NA = np.asarray(pilot.act(world), np.float32)
    wanted = (size, world.embodiment.action_width)
    if command_NA.shape != wanted:
        raise ConfigError(f"commands of shape {command_NA.shape}, not {wanted}", where=type(pilot).__name__)
    return command_NA


def _tell(pilot: Pilot, applied_NA: NDArray[np.float32]) -> None:
    if isinstance(pilot, HearsApplied):
        pilot.applied(applied_NA)


def _outcome(measure: str, score: float) -> str:
    if not measure.startswith("success"):
        return ""
    return "success" if score >= 0.5 else "failure"


def _check_case(world: World, case: str) -> None:
    if case not in world.cases:
        where = f"world {world.embodiment.name!r}"
        raise ConfigError(f"no case {case!r}", where=where, next_step=f"use one of {', '.join(world.cases)}")
