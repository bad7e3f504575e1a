"""One training step on any layout, and its checkpoint."""

from hagane.engine.checkpoint import Saver, load_engine, save_checkpoint, start_from
from hagane.engine.config import StepConfig
from hagane.engine.crew import Crew, crew_of
from hagane.engine.engine import Engine, make_engine
from hagane.engine.fit import fit_layout
from hagane.engine.layout import Compute, Layout, check_layout
from hagane.engine.limits import Limits
from hagane.engine.loads import balance_experts, layer_loads, load_figures
from hagane.engine.meet import Seat, seat_from_env
from hagane.engine.mesh import Mesh, make_mesh
from hagane.engine.placed import Placed
from hagane.engine.ranks import device_for, rank, world_size
from hagane.engine.spawn import run_ranks
from hagane.engine.step import evaluate_loss, train_step
from hagane.engine.watch import EXIT_STUCK

__all__ = [
    "EXIT_STUCK",
    "Compute",
    "Crew",
    "Engine",
    "Layout",
    "Limits",
    "Mesh",
    "Placed",
    "Saver",
    "Seat",
    "StepConfig",
    "balance_experts",
    "check_layout",
    "crew_of",
    "device_for",
    "evaluate_loss",
    "fit_layout",
    "layer_loads",
    "load_engine",
    "load_figures",
    "make_engine",
    "make_mesh",
    "rank",
    "run_ranks",
    "save_checkpoint",
    "seat_from_env",
    "start_from",
    "train_step",
    "world_size",
]
