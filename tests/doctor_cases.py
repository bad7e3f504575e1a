"""Clean machines that the doctor's tests plant faults into: a car, a line, and an arm with two cameras."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.doctor import Doctor
from hagane.catalog.symptoms import Diagnosis, Symptom
from hagane.intake import check_episode
from hagane.intake.picture import encode_jpeg
from hagane.terms import Channel, Embodiment, Episode, Stream
from tests.intake_cases import CAR, LINE, noise

S = 10**9
PICKER = Embodiment(
    "picker",
    "robot",
    "member-robots",
    20.0,
    8,
    observe=(
        Channel("joints", shape=(3,), unit=("rad",), low=(-3.2,), high=(3.2,)),
        Channel("wrist", kind="image", shape=(48, 64, 3), role="camera"),
        Channel("front", kind="image", shape=(48, 64, 3), role="camera"),
    ),
    act=(Channel("target", shape=(3,), unit=("rad",), role="mv", low=(-3.2,), high=(3.2,)),),
)
STEPS = {"road": 400, "mill": 600, "picker": 120}
MACHINES = {m.name: m for m in (CAR, LINE, PICKER)}


@cache
def picker(seed: int, steps: int = STEPS["picker"], *, encoded: bool = True) -> Episode:
    """An arm that follows its targets 0.1 s late, and two noisy cameras that see it move (JPEG where encoded)."""
    rng = np.random.default_rng(seed)
    times_ns = PICKER.step_ns * np.arange(steps, dtype=np.int64)
    target = np.cumsum(rng.normal(size=(steps, 3)) * 0.05, 0).clip(-3, 3)
    joints = np.roll(target, 2, 0)
    joints[:2] = target[0]
    joints = joints + rng.normal(size=joints.shape) * 0.002
    ones = np.ones(steps, bool)
    streams = {"joints": Stream(times_ns, joints.astype(np.float32), ones, ("rad",))}
    for number, name in enumerate(("wrist", "front")):
        pictures = [_scene(joints[k], number, rng) for k in range(steps)]
        values: NDArray[Any] = np.stack(pictures)
        if encoded:
            values = np.array([encode_jpeg(p) for p in pictures] + [None], object)[:-1]
        streams[name] = Stream(times_ns, values, ones)
    streams["target"] = Stream(times_ns, target.astype(np.float32), ones, ("rad",))
    return Episode(f"picker/{seed:06d}", "picker", streams, "tidy up", "success")


def _scene(joints: NDArray[Any], camera: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    y, x = np.mgrid[:48, :64]
    image = np.stack([80 + x, 90 + y, 140 + 0 * x], -1).astype(np.float64)
    image[(x - 32 - 8 * joints[camera]) ** 2 + (y - 24 - 5 * joints[2]) ** 2 < 60] = (220, 120, 40)
    return (image + rng.normal(size=image.shape) * 3).clip(0, 255).astype(np.uint8)


def clean(machine: str, count: int = 3) -> list[Episode]:
    """Episodes without any fault."""
    if machine == "picker":
        return [picker(n) for n in range(count)]
    return [noise(MACHINES[machine], n, STEPS[machine]) for n in range(count)]


def diagnose(machine: Embodiment, episodes: list[Episode]) -> Diagnosis:
    """What the doctor says of episodes that come in through the checks."""
    doctor = Doctor(machine)
    for episode in episodes:
        doctor.add(check_episode(episode, machine))
    return doctor.diagnosis("test")


def edit(episode: Episode, name: str, change: Callable[[Stream], Stream]) -> Episode:
    """The episode with one stream replaced; the change gets a copy that it may write."""
    s = episode.streams[name]
    copy = Stream(s.times_ns.copy(), s.values.copy(), s.valid.copy(), s.unit)
    return replace(episode, streams={**episode.streams, name: change(copy)})


def cut(stream: Stream, keep: NDArray[Any]) -> Stream:
    """The stream with only some rows, or with rows repeated."""
    return replace(stream, times_ns=stream.times_ns[keep], values=stream.values[keep], valid=stream.valid[keep])


def one(d: Diagnosis) -> Symptom:
    """The only symptom."""
    assert len(d.symptoms) == 1, d.symptoms
    return d.symptoms[0]
