"""What a verb made in the memory of its jail, sealed onto the disk by the keeper, and what lies sealed, laid into it.

Code in the jail may have made links in place of folders to lead the keeper elsewhere: every step below the jail's
root is one folder by its descriptor, and no link is followed.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hagane.cli.house import House
from hagane.cli.sealed_run import SealedRun
from hagane.terms import CorruptError, StoreError, digest_file
from hagane.terms.files import write_whole

LARGEST_PAGE = 256 << 20
"""Bytes of a file that may leave as plaintext where the purpose is to view."""


class Collector:
    """Moves what a verb makes between the jail's memory and the disk.

    Args:
        house: the site.
        size_bytes: of the jail's memory: nothing larger is believed.
    """

    def __init__(self, house: House, size_bytes: int) -> None:
        self.house, self.size_bytes = house, size_bytes
        sources = house.sources() if house.opens.makes else ()
        about = (house.catalog.site.operator, sources, house.opens.purpose)
        self.runs = {path: SealedRun(path, *about) for path in house.opens.makes}
        """Runs that the verb makes or adds to, by folder."""
        self._saved = threading.Event()
        self._ended = False

    def fill(self, root: Path) -> None:
        """Lay the runs that the verb reads into its memory, before it runs."""
        for run in self.house.runs:
            run.unseal(_at(root, run.folder), self.house.keyring)

    def saved(self) -> None:
        """A checkpoint may be whole: look for it soon."""
        self._saved.set()

    @contextmanager
    def watching(self, root: Path) -> Iterator[None]:
        """Seal every checkpoint as it becomes whole, while the verb runs."""
        watcher = threading.Thread(target=self._watch, args=(root,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._ended = True
            self._saved.set()
            watcher.join()

    def collect(self, root: Path, texts: dict[str, bytes], code: int) -> None:
        """Seal and lay down all that the verb made; the jail has ended, and nothing in it runs.

        Raises:
            StoreError: the disk refuses; CorruptError: what was made is not what the verb makes.
        """
        for run in self.runs.values():
            place = within(root, run.folder)
            if place is not None:
                self._take(run, place)
                run.take_rest(place, self.house.keyring, texts)
        if code == 0:
            for name in self.house.brings:
                self._take_set(root, name)
            self._take_caches(root)
            for path in self.house.opens.gives:
                self._give(root, path)

    def _watch(self, root: Path) -> None:
        while True:
            self._saved.wait()
            self._saved.clear()
            if self._ended:
                return
            for run in self.runs.values():
                place = within(root, run.folder)
                if place is not None:
                    self._take(run, place)

    def _take(self, run: SealedRun, place: int) -> None:
        run.write_lineage()
        for name in run.take_checkpoints(place, self.house.keyring, self.size_bytes):
            digest = digest_file(run.sealed / name / "sealed.json")
            self.house.ledger.append("sealed", {"run": run.folder.name, "folder": name, "list": digest})

    def _take_set(self, root: Path, name: str) -> None:
        from hagane.catalog.sealing import seal_set

        catalog, signed = self.house.catalog, self.house.brings[name]
        made = folder_in(root, catalog.root / "sets" / name)
        if made is None:
            return  # the same content was there before
        seal_set(made, catalog.root / "sets" / name, self.house.keyring, name, signed, catalog.site.name)
        catalog.refresh()
        record = catalog.record(name)
        catalog.accept(name)
        catalog.note("add", name, {"digest": record.digest, "episodes": record.episodes})

    def _take_caches(self, root: Path) -> None:
        """Caches that were made; one that lay there before is mounted, and no new folder."""
        from hagane.catalog.sealing import seal_cache

        catalog = self.house.catalog
        place = folder_in(root, catalog.root / "cache")
        for made in sorted(place.iterdir()) if place else ():
            name = next((n for n in (*self.house.brings, *self.house.datasets) if made.name.startswith(f"{n}-")), "")
            target = catalog.root / "cache" / made.name
            plain = folder_in(root, target)
            if name and plain is not None and not (plain / "sealed.json").exists() and (plain / "index.json").exists():
                seal_cache(plain, target, self.house.keyring, name, catalog.contract(name))

    def _give(self, root: Path, path: Path) -> None:
        """A file that leaves as plaintext, since its purpose is to be looked at or to be given away."""
        fd = within(root, path.parent)
        if fd is None:
            return
        try:
            file = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
        except OSError:
            return  # the verb made none
        with open(file, "rb") as f:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise CorruptError("what should be a page is no file", where=str(path))
            data = f.read(LARGEST_PAGE + 1)
        if len(data) > LARGEST_PAGE:
            raise StoreError("a page of more than 256 MiB does not leave", where=str(path))
        write_whole(path, [data])
        for name in self.house.datasets:
            body = {"file": path.name, "bytes": len(data), "sha256": digest_file(path), "purpose": self.house.opens.purpose}
            self.house.catalog.note("left", name, body)


def within(root: Path, path: Path) -> int | None:
    """Descriptor of a folder below the jail's root, reached without following a link; None when it is not there.

    Raises:
        CorruptError: something on the way is a link or no folder.
    """
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    for part in path.absolute().parts[1:]:
        try:
            further = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        except FileNotFoundError:
            return None
        except OSError:
            raise CorruptError("a link or file where a folder should be", where=str(path)) from None
        finally:
            os.close(fd)
        fd = further
    return fd


def folder_in(root: Path, path: Path) -> Path | None:
    """A folder below the root of a jail in which nothing runs any more; None when it is not there.

    Raises:
        CorruptError: as `within`.
    """
    fd = within(root, path)
    if fd is None:
        return None
    os.close(fd)
    return _at(root, path)


def _at(root: Path, path: Path) -> Path:
    return root / path.absolute().relative_to("/")

