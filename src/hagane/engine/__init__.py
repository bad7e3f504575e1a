"""One training step on any layout, and its checkpoint."""

from hagane.engine.checkpoint import load_engine, save_checkpoint
from hagane.engine.loads import layer_loads, load_figures
from hagane.engine.parallel import Layout, check_layout, device_for, join_ranks, leave_ranks, rank, world_size
from hagane.engine.step import Engine, StepConfig, evaluate_loss, take_loads, train_step

__all__ = [
    "Engine",
    "Layout",
    "StepConfig",
    "check_layout",
    "device_for",
    "evaluate_loss",
    "join_ranks",
    "layer_loads",
    "leave_ranks",
    "load_engine",
    "load_figures",
    "rank",
    "save_checkpoint",
    "take_loads",
    "train_step",
    "world_size",
]
