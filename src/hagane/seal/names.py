"""Names of members and sites: they become file names and trust decisions, so they are plain ASCII words."""

from __future__ import annotations

import re

from hagane.terms import ConfigError

ROOT = "consortium-root"
"""Whose key signs sites: trust/consortium-root.pub. No member has this name."""
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?", re.ASCII)


def is_name(name: object) -> bool:
    """True for 1 to 64 lower-case ASCII letters, digits, "-" and "_" that begin and end with a letter or digit."""
    return type(name) is str and _NAME.fullmatch(name) is not None


def check_name(name: str, what: str = "member name") -> str:
    """The name itself, when it is safe as a file name and cannot be mistaken for another.

    Raises:
        ConfigError: path parts, spaces, capitals, look-alike Unicode letters, or more than 64 characters.
    """
    if is_name(name):
        return name
    raise ConfigError(
        f"{name!a} is not a {what}",
        next_step="use 1 to 64 characters of a-z, 0-9, - and _, beginning and ending with a letter or digit",
    )
