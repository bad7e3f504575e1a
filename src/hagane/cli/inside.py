"""In the jail: what the verb tells the keeper, and the sealed runs that it goes on with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hagane.cli.opens import BROKER

if TYPE_CHECKING:
    from hagane.seal import Broker

SEALED = Path("/run/hagane/sealed")
"""Where the sealed folders of the runs that a verb reads lie in the jail, by number."""


@cache
def broker() -> Broker | None:
    """The key broker of this jail; None outside of one."""
    from hagane.seal import Broker

    path = os.environ.get(BROKER)
    return Broker(Path(path)) if path else None


def tell(event: str, fields: Mapping[str, Any]) -> None:
    """Tell the keeper what a person outside may see (`cli.events`); nothing outside of a jail."""
    if (known := broker()) is not None:
        known.tell(event, fields)


def unseal_runs() -> None:
    """Lay the sealed runs that this verb reads into its private memory, before it looks for them."""
    from hagane.seal import unseal_folder

    known = broker()
    if known is None:
        return
    for folder in sorted(SEALED.glob("*")):
        target = Path((folder / "place").read_text())
        unseal_folder(folder / "run", target, known.key)
