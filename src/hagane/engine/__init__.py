"""One training step on any layout, and its checkpoint."""

from hagane.engine.checkpoint import Saver, load_engine, save_checkpoint, start_from
from hagane.engine.parallel import Layout, check_layout, device_for, join_ranks, leave_ranks, rank, world_size
from hagane.engine.step import Engine, StepConfig, evaluate_loss, take_loads, train_step

__all__ = [
    "Engine",
    "Layout",
    "Saver",
    "StepConfig",
    "check_layout",
    "device_for",
    "evaluate_loss",
    "join_ranks",
    "leave_ranks",
    "load_engine",
    "rank",
    "save_checkpoint",
    "start_from",
    "take_loads",
    "train_step",
    "world_size",
]
