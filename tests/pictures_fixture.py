"""A machine with two cameras, and made-up episodes whose pictures tell which episode and step they are of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hagane.intake.picture import encode_jpeg, encode_png
from hagane.terms import Channel, Embodiment, Episode, History, Stream

SIZE = (32, 48, 3)
EYES = Embodiment(
    "eyes",
    "robot",
    "member-robots",
    10.0,
    6,
    (
        Channel("state", shape=(4,)),
        Channel("left", kind="image", shape=SIZE, role="camera", history=History(2)),
        Channel("right", kind="image", shape=SIZE, role="camera"),
    ),
    (Channel("hand", shape=(3,), history=History(2)),),
)


def picture(number: int, step: int, camera: int) -> np.ndarray:
    """Smooth, and different for every (episode, step, camera)."""
    y, x, _ = np.meshgrid(*(np.arange(n) for n in SIZE), indexing="ij")
    return ((x * 2 + y * 3 + 40 * number + 9 * step + 90 * camera) % 256 * np.array([1.0, 0.6, 0.3])).astype(np.uint8)


def episode(number: int, steps: int = 0, form: str = "jpeg") -> Episode:
    """An episode at the control rate; the left camera runs at half of it, the right one misses its first picture."""
    rng = np.random.default_rng(number)
    steps = steps or 12 + number % 5
    times = np.arange(steps, dtype=np.int64) * EYES.step_ns
    encode = {"jpeg": encode_jpeg, "png": encode_png, "plain": lambda x: x}[form]

    def camera(index: int, at: np.ndarray) -> Stream:
        rows = [encode(picture(number, int(k), index)) for k in at]
        values = np.stack(rows) if form == "plain" else np.array(rows, object)
        return Stream(times[at], values, np.ones(len(at), bool))

    def numbers(width: int) -> Stream:
        return Stream(times, rng.normal(size=(steps, width)).astype(np.float32), np.ones(steps, bool))

    streams = {
        "state": numbers(4),
        "left": camera(0, np.arange(0, steps, 2)),
        "right": camera(1, np.arange(1, steps)),
        "hand": numbers(3),
    }
    return Episode(f"eyes/{number:05d}", "eyes", streams, "look")


def episodes(count: int, form: str = "jpeg") -> Iterator[Episode]:
    """Episodes 0 .. count - 1."""
    return (episode(n, form=form) for n in range(count))
