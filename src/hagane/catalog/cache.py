"""The training caches of a catalog: one a data set and way of keeping pictures, built again where they are absent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from hagane.catalog.columns import PICTURE_MODES, Columns, PictureMode, is_current, open_columns
from hagane.catalog.columns_write import prepare_rows, write_columns
from hagane.catalog.shelf import Shelf, damaged_cache
from hagane.catalog.stored import StoredSet
from hagane.intake.lerobot_grid import align, instruction
from hagane.seal import check_folder
from hagane.terms.files import alone


@dataclass(frozen=True)
class Caches:
    """The folder `cache/` of a catalog."""

    root: Path
    """The folder."""
    locks: Path
    """Where the lock of each cache lies: whoever builds one waits for nobody who brings data in."""
    shelf: Callable[[Path, str], Shelf]
    """Opens a folder of a data set, plain or sealed."""

    def columns(self, stored: StoredSet, pictures: PictureMode) -> Columns:
        """Training columns of a data set, built from the canonical set where there are none.

        Raises:
            CorruptError: stored bytes differ from their digest; names the file.
            StoreError: the disk refuses.
        """
        machine, name, digest = stored.embodiment(), stored.folder.name, str(stored.record["digest"])
        folder = self._folder(stored, pictures)
        if not is_current(self.shelf(folder, name)):
            made = (
                prepare_rows(e.id, instruction(e, machine), align(e, machine), machine, pictures)
                for e in stored.episodes()
            )
            with self._locked(folder):
                if not is_current(self.shelf(folder, name)):  # another process may have built it meanwhile
                    write_columns(folder, name, digest, machine, made, pictures)
        columns = open_columns(self.shelf(folder, name), machine)
        if (columns.name, columns.digest) != (name, digest):
            # a folder that somebody renamed: it would be read under another set's contract
            raise damaged_cache(folder / "index.json")
        return columns

    def put(self, stored: StoredSet, made: Path) -> None:
        """Rename a finished cache of JPEGs into place."""
        folder = self._folder(stored, "jpeg")
        with self._locked(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            made.rename(folder)

    def verify(self, stored: StoredSet, *, with_keys: bool) -> int:
        """Check every byte of a data set and of its caches (those of an earlier version are not used any more); without
        keys, that sealed files are the ones that were sealed. Returns how many files of the set there are.

        Raises:
            CorruptError: names file and episode.
        """
        name = stored.folder.name
        shelves = [self.shelf(self._folder(stored, mode), name) for mode in PICTURE_MODES]
        if stored.shelf.sealed and not with_keys:
            counts = [len(check_folder(s.folder).files) for s in (stored.shelf, *shelves) if s.sealed]
            return counts[0]
        count = stored.verify()
        for shelf in shelves:
            if is_current(shelf):
                open_columns(shelf, stored.embodiment()).verify()
        return count

    def _locked(self, folder: Path) -> AbstractContextManager[int]:
        return alone(self.locks / f"{folder.name}.cache")

    def _folder(self, stored: StoredSet, pictures: PictureMode) -> Path:
        ending = "" if pictures == "jpeg" else f"-{pictures}"
        return self.root / f"{stored.folder.name}-{stored.record['digest'][:16]}{ending}"
