"""Published runs as tests/assets/plan/published.toml has them, and what the estimate says of each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from hagane.plan.rates import Assumptions, gpu_named
from hagane.plan.roofline import Setup, StepTime, estimate_step
from hagane.plan.shape import Shape
from hagane.terms import load_toml

PUBLISHED = Path(__file__).parent / "assets" / "plan" / "published.toml"


@dataclass(frozen=True)
class Run:
    """One published run; speed as tokens a second and GPU, or as model TFLOP/s and GPU."""

    name: str
    shape: str
    gpu: str
    source: str
    setup: Setup
    assumed: Assumptions = field(default_factory=Assumptions)
    tokens_s_gpu: float = 0.0
    tflops: float = 0.0
    fit: bool = False


@dataclass(frozen=True)
class Published:
    shape: tuple[Shape, ...]
    run: tuple[Run, ...]


def published() -> Published:
    return load_toml(PUBLISHED, Published)


def shape_named(name: str) -> Shape:
    return next(s for s in published().shape if s.name == name)


def predict(run: Run, matmul: float | None = None) -> StepTime:
    """The estimate, at the fitted constant that the package ships or at another."""
    assumed = run.assumed
    if matmul is not None:
        assumed = replace(assumed, kernels=replace(assumed.kernels, matmul=matmul))
    return estimate_step(shape_named(run.shape), run.setup, gpu_named(run.gpu, assumed), assumed)


def measured(run: Run) -> float:
    """Published tokens a second and GPU."""
    return run.tokens_s_gpu or 1e12 * run.tflops / shape_named(run.shape).train_flops


def fitted() -> float:
    """The share of the measured matrix product that makes the one fitted run come out, by halving."""
    (run,) = (r for r in published().run if r.fit)
    low, high = 0.1, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if predict(run, middle).tokens_s_gpu < measured(run) else (low, middle)
    return low
