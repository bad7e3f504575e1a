"""CAN logs of any form to one `Recording`: candump text, BLF, ASC, and folders of arrays, told apart by content."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hagane.intake.asc import looks_like_asc, parse_asc
from hagane.intake.blf import looks_like_blf, read_blf
from hagane.intake.candump import looks_like_candump, parse_candump
from hagane.intake.comma import looks_like_comma, read_comma
from hagane.intake.files import head_of, read_bytes
from hagane.intake.frames import Recording
from hagane.intake.options import Options
from hagane.terms import digest_bytes


def looks_like_can(path: Path) -> bool:
    """True for a log of any of these forms, whatever it is called."""
    if path.is_dir():
        return looks_like_comma(path)
    head = head_of(path)
    return looks_like_candump(head) or looks_like_blf(head) or looks_like_asc(head)


def load_recording(path: Path, options: Options) -> Recording:
    """All frames of a log.

    Raises:
        LogError: the bytes cannot be read.
    """
    if path.is_dir():
        return read_comma(path)
    head = head_of(path)
    if looks_like_blf(head):
        return read_blf(path, options.timezone)
    text = read_bytes(path)
    asc = looks_like_asc(head)
    recording = parse_asc(text, str(path), options.timezone) if asc else parse_candump(text, str(path))
    return replace(recording, digest=digest_bytes(text))
