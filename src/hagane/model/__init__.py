"""Tensors: the generalist, its sizes, its tokens, trunk and action tower."""

from hagane.model.config import ModelConfig, make_config
from hagane.model.generalist import Generalist, LossSums, Packed, TrainSample, by_part, loss_counts
from hagane.model.moe import balance
from hagane.model.sizes import CONSORTIUM, SIZES, Size, split_experts
from hagane.model.start import reset_parameters, start_pieces
from hagane.model.tensors import Sample, to_sample, window_tensors
from hagane.model.weights import Manifest, latest, load_config, load_served, read_manifest

__all__ = [
    "CONSORTIUM",
    "SIZES",
    "Generalist",
    "LossSums",
    "Manifest",
    "ModelConfig",
    "Packed",
    "Sample",
    "Size",
    "TrainSample",
    "balance",
    "by_part",
    "latest",
    "load_config",
    "load_served",
    "loss_counts",
    "make_config",
    "read_manifest",
    "reset_parameters",
    "split_experts",
    "start_pieces",
    "to_sample",
    "window_tensors",
]
