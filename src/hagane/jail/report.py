"""What the stage and the init tell the parent: short lines over a pipe, the parent's only word from inside the walls.

The command cannot write here: the pipe closes when it is executed.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Step = tuple[str, Callable[[], object]]  # what is being done, in words, and the doing

FAILED, INIT, AWAITS, STARTED, ENDED = "failed", "init", "awaits", "started", "ended"
"""Kinds of line: a step failed (step, errno, detail); host's number of the init; waits for a word (which); the command
runs; it ended (0 or 1)."""
GO, TERMINATE = b"g", b"t"
"""Words to the init: go on; pass SIGTERM to the command. The end of that pipe is the jail's end."""


def tell(fd: int, kind: str, *words: object) -> None:
    """Write one line; a parent that is gone is no error here, the lifeline's end tells."""
    line = "\t".join(str(w).replace("\t", " ").replace("\n", " ") for w in (kind, *words))
    try:
        os.write(fd, line.encode("utf-8", "replace")[:4000] + b"\n")
    except BrokenPipeError:
        pass


def follow(steps: list[Step], fd: int) -> None:
    """Do all steps in order; the first that fails is told, and this process ends with nothing after it done."""
    for name, act in steps:
        try:
            act()
        except Exception as e:
            errno = e.errno if isinstance(e, OSError) else 0
            detail = getattr(e, "strerror", None) or f"{type(e).__name__}: {e}"
            place = getattr(e, "filename", None)
            tell(fd, FAILED, name, errno or 0, f"{detail} ({place})" if place else detail)
            os._exit(1)
