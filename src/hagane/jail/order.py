"""Order: what the parent tells the stage, in plain values. Marshalled, because reading JSON costs the start 15 ms."""

from __future__ import annotations

import marshal


class Order:
    """One jail, as its stage sees it. Paths are absolute text; the stage imports neither pathlib nor dataclasses."""

    __slots__ = (
        "command",
        "cwd",
        "env",
        "files",
        "host_name",
        "layers",
        "parent",
        "reads",
        "size_bytes",
        "sockets",
        "wired",
        "works",
    )

    command: tuple[str, ...]
    """Program and arguments; the program is a path inside."""
    cwd: str
    """Working folder inside."""
    env: dict[str, str]
    """The whole environment."""
    files: dict[str, bytes]
    """Small files that the jail's own root holds, by path: /etc/passwd and the like."""
    host_name: str
    """Name of the machine as seen inside."""
    layers: frozenset[str]
    """Names of the layers that are on."""
    parent: int
    """Process whose death ends the jail by signal; 0 where only the lifeline's end does."""
    reads: tuple[tuple[str, str], ...]
    """(source, target): bound read-only with all that is mounted below."""
    size_bytes: int
    """Limit of the private work area, shared by works, /tmp and /dev/shm."""
    sockets: tuple[tuple[str, str], ...]
    """(source, target): unix sockets that may be connected to."""
    wired: bool
    """Wait until the parent has put a network device into the new network namespace."""
    works: tuple[str, ...]
    """Folders in the private work area."""

    def __init__(self, **values: object) -> None:
        if set(values) != set(self.__slots__):
            raise TypeError(f"an order has exactly {self.__slots__}")
        for name, value in values.items():
            setattr(self, name, value)

    def dump(self) -> bytes:
        """Bytes for `load`, read by the same interpreter only."""
        return marshal.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def load(cls, data: bytes) -> Order:
        """Read what `dump` wrote; only ever from our own parent's pipe."""
        return cls(**marshal.loads(data))
