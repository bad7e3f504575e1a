"""What code in a jail prints: shown where the contract grants to view, kept for its owner everywhere else.

Terminal escapes never come out: they could move what a person reads, or type on the terminal's own behalf.
"""

from __future__ import annotations

import os
import sys
import threading
from codecs import getincrementaldecoder
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

KEPT_BYTES = 4 << 20
"""Of each stream, the first bytes that are kept; the rest is counted only."""
_DROPPED = dict.fromkeys((*(set(range(0x20)) - set(b"\t\n")), *range(0x7F, 0xA0)))
"""Controls of C0 and C1: a terminal takes them for orders."""
_TURNED = dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
"""Controls of writing direction: a person would read something else than what stands there."""


def cleaned(text: str) -> str:
    """Text without control characters but tab and line end. It is characters that are dropped: out of bytes, what is
    left on both sides of a dropped control could join to another one."""
    return text.translate(_DROPPED | _TURNED)


class Text:
    """The two pipes of a jail's standard streams; a context manager.

    Args:
        shown: pass it on to this process's own streams.
    """

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.kept = {"stdout.txt": bytearray(), "stderr.txt": bytearray()}
        """What was written to each, up to `KEPT_BYTES`."""
        self.bytes = 0
        """How many bytes were written to both."""
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Text:
        return self

    def __exit__(self, *_: object) -> None:
        self.drain()

    @contextmanager
    def pipes(self) -> Iterator[tuple[int, int]]:
        """Descriptors for the jail's stdout and stderr; ours are closed once it holds its own."""
        inner: list[int] = []
        for name, stream in zip(self.kept, (sys.stdout, sys.stderr), strict=True):
            reader, writer = os.pipe()
            inner.append(writer)
            thread = threading.Thread(target=self._read, args=(name, reader, stream), daemon=True)
            self._threads.append(thread)
            thread.start()
        try:
            yield inner[0], inner[1]
        finally:
            for fd in inner:
                os.close(fd)

    def drain(self) -> None:
        """Wait until everything that was written is read: the jail's processes are gone then."""
        while self._threads:
            self._threads.pop().join()

    def _read(self, name: str, reader: int, stream: TextIO) -> None:
        kept, decoder = self.kept[name], getincrementaldecoder("utf-8")("replace")
        with open(reader, "rb", buffering=0) as f:
            while data := f.read(1 << 16):
                self.bytes += len(data)
                kept.extend(data[: max(KEPT_BYTES - len(kept), 0)])
                if self.shown:
                    stream.write(cleaned(decoder.decode(data)))
                    stream.flush()
