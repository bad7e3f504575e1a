"""One writer at a time of one thing: a lock that a killed process lets go by dying."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hagane.intake.lerobot_journal import disk_error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file (made if absent); waits for whoever holds it, in this process too.

    Raises:
        StoreError: the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as e:
        raise disk_error(e, path) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
