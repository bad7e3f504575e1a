"""Our bytes on disk to batches: data sets under contract, their index and statistics, and the training loader.

Names are loaded when first used, so that importing the room costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hagane.catalog.ahead import Ahead
    from hagane.catalog.catalog import Catalog
    from hagane.catalog.columns import Columns
    from hagane.catalog.loader import Loader
    from hagane.catalog.mixture import Mixture
    from hagane.catalog.record import DatasetRecord
    from hagane.catalog.workers import Workers

_HOMES = {
    "Ahead": "hagane.catalog.ahead",
    "Catalog": "hagane.catalog.catalog",
    "Columns": "hagane.catalog.columns",
    "DatasetRecord": "hagane.catalog.record",
    "Loader": "hagane.catalog.loader",
    "Mixture": "hagane.catalog.mixture",
    "Workers": "hagane.catalog.workers",
}

__all__ = ["Ahead", "Catalog", "Columns", "DatasetRecord", "Loader", "Mixture", "Workers"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
