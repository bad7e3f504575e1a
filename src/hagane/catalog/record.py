"""DatasetRecord: what a catalog says about a data set without opening its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DatasetRecord:
    """One line of `Catalog.ls`."""

    name: str
    """Name, unique in the catalog."""
    embodiment: str
    """Name of the machine."""
    owner: str
    """The member that owns it."""
    episodes: int
    """Episodes."""
    steps: int
    """Control steps over all episodes."""
    seconds: float
    """Length of all episodes."""
    digest: str
    """Content digest: the machine and its episodes."""
    contract_digest: str
    """sha256 of the contract's text; "" when it cannot be verified."""
    contract_path: Path
    """The contract beside the data."""
    findings: int
    """What the checks saw on the way in."""
    site: str = ""
    """Name of the site where it was brought in; "" for sets of an earlier version."""
    domain: str = ""
    """robot, vehicle, plant or game; "" for sets of an earlier version."""
    sealed: bool = False
    """True for one that is read with keys only."""
