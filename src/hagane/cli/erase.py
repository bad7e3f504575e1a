"""`hagane erase`: another name of `hagane keys erase`."""

from __future__ import annotations

from hagane.cli.keys import erase_ as main

__all__ = ["main"]
