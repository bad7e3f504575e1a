"""Tensors: the generalist, its sizes, its tokens, trunk and action tower."""

from hagane.model.config import ModelConfig, make_config
from hagane.model.generalist import Generalist, LossSums, TrainSample
from hagane.model.moe import balance
from hagane.model.sizes import CONSORTIUM, SIZES, Size, split_experts
from hagane.model.tensors import Sample, to_sample, window_tensors
from hagane.model.weights import Manifest, latest, load_config, load_served, read_manifest

__all__ = [
    "CONSORTIUM",
    "SIZES",
    "Generalist",
    "LossSums",
    "Manifest",
    "ModelConfig",
    "Sample",
    "Size",
    "TrainSample",
    "balance",
    "latest",
    "load_config",
    "load_served",
    "make_config",
    "read_manifest",
    "split_experts",
    "to_sample",
    "window_tensors",
]
