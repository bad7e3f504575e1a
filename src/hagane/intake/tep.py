"""Tennessee Eastman process records (.dat): a bare matrix of 52 columns, a row every 3 minutes.

Columns are XMEAS(1..41) and XMV(1..11) of the process of Downs and Vogel, Computers Chem. Engng 17 (1993) 245-255;
names, units and disturbances are theirs (the order of XMV as their code of 1991 corrects it). The
files are those of Russell, Chiang and Braatz (2000): dNN.dat for training and dNN_te.dat for tests, NN being the
disturbance. Some copies hold a transposed file (52 rows): it is turned, and a note says so.

Analyses are sampled every 6 minutes (XMEAS(23..36)) and every 15 (XMEAS(37..41)) and held between. Where a channel
declares a rate below the file's, a held row is no sample.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagane.intake.files import head_of, read_bytes
from hagane.intake.options import Options
from hagane.intake.sources import column_sources, nearest
from hagane.intake.streams import note, unmapped, with_cut
from hagane.terms import Channel, ConfigError, Embodiment, Episode, Finding, LogError, Stream, digest_bytes

COLUMNS = 52
STEP_S = 180.0
"""Seconds from row to row."""
NAMES = tuple(f"XMEAS({k})" for k in range(1, 42)) + tuple(f"XMV({k})" for k in range(1, 12))
"""The columns of a file, in order."""
UNITS = (
    *("kscmh", "kg/h", "kg/h", "kscmh", "kscmh", "kscmh", "kPa", "%", "Cel", "kscmh", "Cel", "%", "kPa", "m3/h", "%"),
    *("kPa", "m3/h", "Cel", "kg/h", "kW", "Cel", "Cel"),
    *(["mol%"] * 19),
    *(["%"] * 11),
)
"""Unit of each column; kscmh is 1000 standard cubic metres an hour, kPa is gauge."""
DISTURBANCES = {
    1: "A/C feed ratio, B constant, step",
    2: "B composition, A/C ratio constant, step",
    3: "D feed temperature, step",
    4: "reactor cooling water inlet temperature, step",
    5: "condenser cooling water inlet temperature, step",
    6: "A feed loss, step",
    7: "C header pressure loss, step",
    8: "A, B, C feed composition, random",
    9: "D feed temperature, random",
    10: "C feed temperature, random",
    11: "reactor cooling water inlet temperature, random",
    12: "condenser cooling water inlet temperature, random",
    13: "reaction kinetics, slow drift",
    14: "reactor cooling water valve, sticking",
    15: "condenser cooling water valve, sticking",
    **dict.fromkeys(range(16, 21), "unknown"),
    21: "valve of stream 4, held",
}
"""Disturbances IDV(1..20) in words, and the 21st of the data set."""

_NUMBERS = re.compile(rb"[\d.eE+\-\s]+")
_MOST_DIGITS = 64
_FAULT_ROW = 160  # of a test file: 8 h of 3 min


def sniff(path: Path) -> bool:
    """True for text of nothing but numbers between blanks, many in a line."""
    if not path.is_file():
        return False
    head = head_of(path, 1 << 15)
    words = head.split(b"\n", 1)[0].split()
    return len(words) >= 20 and bool(_NUMBERS.fullmatch(head)) and all(b"." in w for w in words[:-1])


def read(path: Path, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    """The episode of one file.

    Raises:
        LogError: a word that is no number, rows of different lengths (a cut file; with `keep_whole` the whole rows
            before are given, if the file is not a transposed one), or neither 52 columns nor 52 rows.
        ConfigError: a source that is no column of such a file.
    """
    raw = read_bytes(path)
    rows, cut = _matrix(raw, str(path), options.keep_whole)
    name = path.stem
    findings: list[Finding] = []
    if rows.shape[1] != COLUMNS:
        text = f"the file is transposed ({rows.shape[0]} rows of {rows.shape[1]} columns): read by columns"
        findings.append(note(name, "*", text))
        rows = rows.T
    findings += _disturbance(name)
    times_ns = np.round(np.arange(len(rows)) * STEP_S * 1e9).astype(np.int64)
    streams: dict[str, Stream] = {}
    for channel in embodiment.channels():
        if channel.kind == "vector":
            streams[channel.name] = _stream(channel, rows, times_ns)
        elif channel.kind != "text":
            findings.append(unmapped(name, channel.name, "such a file holds numbers only"))
    episode = Episode(name, embodiment.name, streams, options.task, "", digest_bytes(raw), tuple(findings))
    return iter((with_cut(episode, cut),))


def _matrix(raw: bytes, where: str, keep_whole: bool) -> tuple[NDArray[np.float64], str]:
    """[rows, columns] of the file, and words for a cut."""
    lines = [line.split() for line in raw.split(b"\n")]
    lines = [words for words in lines if words]
    widths = [len(words) for words in lines]
    if not lines:
        raise LogError("holds no number", where=where, next_step="copy it again")
    ended, cut = raw.endswith(b"\n"), ""
    odd = next((k for k, n in enumerate(widths) if n != widths[0]), -1)
    if odd == len(lines) - 1 and odd > 0 and widths[odd] < widths[0]:
        cut = f"the last row has {widths[odd]} of {widths[0]} numbers"
    elif odd >= 0:
        raise LogError(
            f"a row of {widths[odd]} numbers after rows of {widths[0]}",
            where=f"{where}, row {odd + 1}",
            next_step="copy the file again",
        )
    elif not ended:
        cut = "no line break after the last row: it is not used"
    if cut:
        if not keep_whole or len(lines) < 2 or widths[0] != COLUMNS:
            raise LogError(
                f"truncated file: {cut}",
                where=where,
                next_step="copy it again, or pass --keep-whole to take the rows before",
            )
        lines = lines[:-1]
    if COLUMNS not in (len(lines), widths[0]):
        raise LogError(
            f"{len(lines)} rows of {widths[0]} numbers: neither 52 columns nor 52 rows",
            where=where,
            next_step="Tennessee Eastman files have XMEAS(1..41) and XMV(1..11); give others a header line, as CSV",
        )
    longest = max(len(word) for words in lines for word in words)
    if longest > _MOST_DIGITS:  # NumPy gives every word the room of the longest
        what = f"a word of {longest} characters is no number"
        raise LogError(what, where=where, next_step="copy the file again")
    try:
        return np.array(lines, dtype=np.bytes_).astype(np.float64), cut
    except ValueError as e:
        raise LogError(f"a word is no number: {e}", where=where, next_step="copy the file again") from None


def _disturbance(name: str) -> list[Finding]:
    """What the file's name says: the name is all there is, the file itself does not tell."""
    match = re.fullmatch(r"d(\d\d)(_te)?", name.lower())
    number = int(match[1]) if match else 0
    if number not in DISTURBANCES:
        return []
    since = "after its 160th row (8 h)" if match and match[2] else "from its first row"
    at_ns = round(_FAULT_ROW * STEP_S * 1e9) if match and match[2] else 0
    which = f"IDV({number})" if number < 21 else "fault 21"
    text = f"its name says {which}: {DISTURBANCES[number]}; the data set introduces it {since}"
    return [Finding("note", name, "*", at_ns, 0, text)]


def _stream(channel: Channel, rows: NDArray[np.float64], times_ns: NDArray[np.int64]) -> Stream:
    index = []
    for source in column_sources(channel):
        name = source.strip().upper()
        if name not in NAMES:
            raise ConfigError(
                f"no column {source!r} in a Tennessee Eastman file",
                where=f"channel {channel.name!r}",
                next_step=nearest(source, NAMES),
            )
        index.append(NAMES.index(name))
    values = rows[:, index].astype(np.float64)
    if 0 < channel.rate_hz < 0.7 / STEP_S:
        fresh = np.r_[True, (np.diff(values, axis=0) != 0).any(1)]
        values, times_ns = values[fresh], times_ns[fresh]
    units = tuple(UNITS[k] for k in index)
    return Stream(times_ns, values, np.ones(len(values), bool), units)
