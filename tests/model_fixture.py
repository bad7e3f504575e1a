"""Small machines and random batches for tests of the model, the engine and training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hagane.engine import Compute, Engine, Layout, StepConfig, make_engine
from hagane.model import Generalist, ModelConfig, make_config, reset_parameters
from hagane.terms import Batch, Channel, Embodiment, History, Observation, Part, Window

ARM = Embodiment(
    "arm",
    "robot",
    "member-robots",
    20.0,
    16,
    (Channel("joints", shape=(4,), history=History(2, 1)), Channel("goal", shape=(3,))),
    (Channel("move", shape=(4,), history=History(2, 1)),),
)
CAM = Embodiment(
    "cam",
    "robot",
    "member-robots",
    20.0,
    16,
    (
        Channel("view", kind="image", shape=(32, 48, 3), unit=("1",), role="camera", history=History(2, 2)),
        Channel("say", kind="text", role="instruction"),
    ),
    (Channel("move", shape=(2,)),),
)
ROAD = Embodiment(
    "road",
    "vehicle",
    "member-cars",
    10.0,
    16,
    (
        Channel("ego", shape=(3,), history=History(3, 2)),
        Channel("agents", kind="set", shape=(5, 4), role="agents", history=History(2, 1)),
        Channel("lane", kind="set", shape=(6, 2), role="map"),
    ),
    (Channel("drive", shape=(2,)),),
)


def shape_of(size: str = "1m", embodiments: tuple[Embodiment, ...] = (ARM, ROAD), **kwargs: object) -> ModelConfig:
    config = make_config(size, embodiments)
    return ModelConfig(config.size, config.embodiments, config.experts, **kwargs)  # type: ignore[arg-type]


def lively(shape: ModelConfig) -> dict[str, Tensor]:
    """Outputs that are not zero from the start."""
    with torch.device("meta"):
        model = Generalist(shape)
    rng = np.random.default_rng(0)
    both = {"tower.w_out": model.tower.w_out.shape, "tokeniser.w_next": model.tokeniser.w_next.shape}
    return {name: torch.from_numpy(rng.normal(0, 0.1, size)).float() for name, size in both.items()}


def make_model(size: str = "1m", embodiments: tuple[Embodiment, ...] = (ARM, ROAD), **kwargs: object) -> Generalist:
    model = Generalist(shape_of(size, embodiments, **kwargs))
    reset_parameters(model, 0)
    with torch.no_grad():
        for name, values in lively(model.config).items():
            model.get_parameter(name).copy_(values)
    return model


def engine_of(
    config: StepConfig | None = None,
    size: str = "1m",
    embodiments: tuple[Embodiment, ...] = (ARM, ROAD),
    layout: Layout | None = None,
    compute: Compute | None = None,
    **kwargs: object,
) -> Engine:
    """An engine on this rank with the weights of `make_model`."""
    shape = shape_of(size, embodiments, **kwargs)
    return make_engine(shape, config or StepConfig(), 0, layout=layout, compute=compute, given=lively(shape))


def make_part(e: Embodiment, n: int, seed: int = 0) -> Part:
    rng = np.random.default_rng([seed, len(e.name), ord(e.name[0])])
    channels, following = {}, {}
    for c in e.channels():
        if c.kind == "text":
            continue
        s = c.history.steps
        values = rng.normal(size=(n, s, *c.shape)).astype(np.float32)
        if c.kind == "image":
            values = rng.integers(0, 256, (n, s, *c.shape), np.uint8)
        valid = rng.random((n, s, c.places) if c.kind == "set" else (n, s)) < 0.9
        age = np.zeros((n, s), np.float32)
        channels[c.name] = Window(values, valid, age)
        if c in e.observe:
            following[c.name] = Window(values[:, :1], valid[:, :1], age[:, :1])
    observation = Observation(e.name, np.zeros(n, np.int64), channels, ("move to the goal",) * n)
    actions = rng.normal(size=(n, e.horizon, e.action_width)).astype(np.float32)
    valid = rng.random((n, e.horizon)) < 0.8
    ids = rng.integers(0, 2**63, n).astype(np.uint64)
    return Part(observation, actions, valid, following, ids)


def make_batch(step: int = 0, n: int = 6, embodiments: tuple[Embodiment, ...] = (ARM, ROAD)) -> Batch:
    return Batch(step, tuple(make_part(e, n, step) for e in sorted(embodiments, key=lambda e: e.name)))
