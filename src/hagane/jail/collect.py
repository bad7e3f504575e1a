"""Collect: read what a jail left in its works, trusting nothing in it.

A path below `Jailed.root` must not simply be opened: a link that the jail made leads, for us, to the host's own files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from hagane.jail.run import Jailed
from hagane.terms import JailError, StoreError
from hagane.terms.files import files_below, folder_at


def collect(jailed: Jailed, work: Path) -> Iterator[tuple[PurePosixPath, int]]:
    """Every file of a work: its path below the work, and a descriptor that is open until the next one is asked for.

    Call it after `wait`, when nothing inside writes any more. Names are the jail's own choice: check them.

    Raises:
        JailError: the work holds a link, a pipe, a socket or a name that does not print; what came before stays read.
    """
    top = folder_at(jailed.root, work)
    try:
        for path, file in files_below(top):
            yield PurePosixPath(path), file
    except StoreError as e:
        what = f"a jail may leave files and folders with plain names only: {e.what}"
        raise JailError(what, where=str(work), next_step=e.next_step) from None
    finally:
        os.close(top)
