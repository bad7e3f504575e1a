"""In the jail: the broker's client, and what the verb tells the keeper."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hagane.cli.opens import BROKER
from hagane.terms import HaganeError

if TYPE_CHECKING:
    from hagane.seal.broker_client import Broker


@cache
def broker() -> Broker | None:
    """The key broker of this jail; None outside of one."""
    from hagane.seal.broker_client import Broker

    path = os.environ.get(BROKER)
    return Broker(Path(path)) if path else None


def tell(event: str, fields: Mapping[str, Any]) -> None:
    """Tell the keeper what a person outside may see (`cli.events`); nothing outside of a jail."""
    if (known := broker()) is not None:
        with suppress(HaganeError):  # what does not come out is no reason to stop
            known.tell(event, fields)
