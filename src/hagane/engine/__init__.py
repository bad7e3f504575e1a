"""One training step on any layout, and its checkpoint."""

from hagane.engine.checkpoint import load_engine, save_checkpoint
from hagane.engine.config import StepConfig
from hagane.engine.engine import Engine, make_engine
from hagane.engine.layout import Compute, Layout, check_layout
from hagane.engine.loads import balance_experts, layer_loads, load_figures
from hagane.engine.mesh import Mesh, make_mesh
from hagane.engine.placed import Placed
from hagane.engine.ranks import device_for, join_ranks, leave_ranks, rank, world_size
from hagane.engine.step import evaluate_loss, train_step

__all__ = [
    "Compute",
    "Engine",
    "Layout",
    "Mesh",
    "Placed",
    "StepConfig",
    "balance_experts",
    "check_layout",
    "device_for",
    "evaluate_loss",
    "join_ranks",
    "layer_loads",
    "leave_ranks",
    "load_engine",
    "load_figures",
    "make_engine",
    "make_mesh",
    "rank",
    "save_checkpoint",
    "train_step",
    "world_size",
]
