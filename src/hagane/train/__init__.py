"""Change weights."""

from hagane.train.changes import change_mixture
from hagane.train.config import TrainConfig
from hagane.train.data import CatalogData, open_data
from hagane.train.loop import train
from hagane.train.recipes import RECIPES, find_recipe
from hagane.train.run import read_config, read_lines

__all__ = [
    "RECIPES",
    "CatalogData",
    "TrainConfig",
    "change_mixture",
    "find_recipe",
    "open_data",
    "read_config",
    "read_lines",
    "train",
]
