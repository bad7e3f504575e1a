"""One training step on any layout, and its checkpoint."""

from hagane.engine.checkpoint import (
    Manifest,
    latest,
    load_config,
    load_engine,
    load_served,
    read_manifest,
    save_checkpoint,
)
from hagane.engine.parallel import Layout, check_layout, device_for, rank
from hagane.engine.step import Engine, StepConfig, evaluate_loss, take_loads, train_step

__all__ = [
    "Engine",
    "Layout",
    "Manifest",
    "StepConfig",
    "check_layout",
    "device_for",
    "evaluate_loss",
    "latest",
    "load_config",
    "load_engine",
    "load_served",
    "rank",
    "read_manifest",
    "save_checkpoint",
    "take_loads",
    "train_step",
]
