"""Episodes and embodiments that the intake tests share."""

from __future__ import annotations

import numpy as np

from hagane.terms import Channel, Embodiment, Episode, Stream

CAR = Embodiment(
    "road",
    "vehicle",
    "member-cars",
    10.0,
    16,
    observe=(
        Channel(
            "ego",
            shape=(5,),
            unit=("m/s", "rad/s", "m", "m", "1"),
            low=(0, -1, -5, -5, 0),
            high=(60, 1, 5, 5, 1),
            source=("EGO.SPEED", "EGO.YAW", "EGO.LEFT", "EGO.RIGHT", "EGO.LIMIT"),
        ),
        Channel(
            "agents",
            kind="set",
            shape=(3, 6),
            role="agents",
            low=(-100,),
            high=(100,),
            source=tuple(f"OBJ_{{i:02d}}.{c}" for c in ("X", "Y", "VX", "VY", "L", "W")),
        ),
    ),
    act=(
        Channel(
            "drive",
            shape=(2,),
            unit=("m/s2", "rad"),
            role="mv",
            low=(-5, -0.5),
            high=(3, 0.5),
            source=("COMMAND.ACCEL", "COMMAND.STEER"),
        ),
    ),
)
LINE = Embodiment(
    "mill",
    "plant",
    "member-steel",
    1.0,
    16,
    observe=(
        Channel(
            "coating",
            shape=(2,),
            unit=("g/m2",),
            role="pv",
            low=(0,),
            high=(300,),
            source=("COATING_TOP", "COATING_BOTTOM"),
        ),
        Channel("speed", unit=("m/min",), role="pv", low=(0,), high=(250,), source=("LINE_SPEED",)),
        Channel("bath", unit=("Cel",), role="pv", rate_hz=0.01, source=("BATH_TEMP",)),
    ),
    act=(Channel("gap", unit=("mm",), role="mv", low=(-50,), high=(50,), source=("KNIFE_GAP",)),),
)


def noise(embodiment: Embodiment, seed: int, steps: int, start_ns: int = 0) -> Episode:
    """An episode of random readings on the control grid, applied actions included; clean by every check."""
    rng = np.random.default_rng(seed)
    times_ns = start_ns + embodiment.step_ns * np.arange(steps, dtype=np.int64)
    streams = {}
    for channel in (*embodiment.observe, *embodiment.act):
        low, high = (np.array(v or (d,)) for v, d in ((channel.low, 400.0), (channel.high, 500.0)))
        values = rng.uniform(low, high, (steps, *channel.shape))
        if channel.kind == "set":
            streams[channel.name] = Stream(times_ns, values, rng.random((steps, channel.places)) < 0.6)
        elif channel.rate_hz:
            every = round(embodiment.rate_hz / channel.rate_hz)
            streams[channel.name] = Stream(
                times_ns[::every], values[::every], np.ones(len(times_ns[::every]), bool), channel.unit
            )
        else:
            streams[channel.name] = Stream(times_ns, values, np.ones(steps, bool), channel.unit)
        if channel in embodiment.act:
            streams[channel.name + ".applied"] = Stream(times_ns, values * 0.9, np.ones(steps, bool), channel.unit)
    outcome = ("success", "failure", "")[seed % 3]
    return Episode(f"{embodiment.name}/{seed:06d}", embodiment.name, streams, f"task {seed % 2}", outcome)
