"""DBC files: read by cantools; where it stops at a broken line, the lines around it are still used.

What a broken line defined is lost, and is listed with its line: a signal, or a message with all of its signals. An
importer refuses when a lost signal is asked for, and reports the others as a finding.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hagane.intake.frames import EXTENDED
from hagane.intake.signals import Message, Signal
from hagane.terms import LogError

_NAME, _NUMBER = r"[A-Za-z_]\w*", r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_BO = re.compile(rf"BO_\s+\d+\s+({_NAME})\s*:\s*\d+\s+\w+")
_SG = re.compile(
    rf"SG_\s+({_NAME})\s*(M|m\d+M?)?\s*:\s*\d+\|\d+@[01][+-]\s*\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)\s*"
    rf'\[\s*{_NUMBER}\s*\|\s*{_NUMBER}\s*\]\s*"[^"]*"[\s\w,]*'
)
_VAL = re.compile(rf'VAL_\s+\d+\s+{_NAME}(\s+-?\d+\s+"[^"]*")*\s*;')
_TYPE = re.compile(rf"SIG_VALTYPE_\s+(\d+)\s+{_NAME}\s*:?\s*[0-3]\s*;")
_MUL = re.compile(rf"SG_MUL_VAL_\s+(\d+)\s+{_NAME}\s+{_NAME}(\s*,?\s*\d+-\d+)+\s*;")
_KEPT = {"VAL_": _VAL, "SIG_VALTYPE_": _TYPE, "SG_MUL_VAL_": _MUL}
_OTHERS = re.compile(r"VERSION|NS_|BS_|BU_|CM_|EV_|(VAL_TABLE|BA|BO_TX_BU|ENVVAR_DATA|SGTYPE|SIG|CAT|FILTER)\w*_\b")


@dataclass(frozen=True)
class BadLine:
    """A line of a DBC that cannot be read, and what is lost by it."""

    number: int
    text: str
    message: str = ""
    """Name of the message concerned; "" when the line defines none."""
    signal: str = ""
    """The one signal that is lost; "" with `message` means all of its signals."""

    def __str__(self) -> str:
        lost = f": message {self.message} is lost" if self.message else ""
        lost = f": signal {self.message}.{self.signal} is lost" if self.signal else lost
        return f"{f'line {self.number} ' if self.number else ''}{self.text.strip()[:60]!r}{lost}"


@dataclass(frozen=True)
class Definitions:
    """What a DBC file says."""

    path: Path
    messages: dict[str, Message]
    """Messages by name, without what broken lines defined."""
    bad: tuple[BadLine, ...] = ()
    """Lines that could not be read."""

    def words(self) -> str:
        """One sentence on the broken lines, "" when there is none."""
        more = f", and {len(self.bad) - 3} more" if len(self.bad) > 3 else ""
        listed = ", ".join(map(str, self.bad[:3])) + more
        count = "1 line" if len(self.bad) == 1 else f"{len(self.bad)} lines"
        return f"{count} of {self.path.name} cannot be read as DBC: {listed}" if self.bad else ""


def load_dbc(path: Path) -> Definitions:
    """Messages of a DBC file.

    The text is UTF-8, Shift-JIS where it looks like it, or else Windows-1252.

    Raises:
        LogError: missing file, no DBC at all, or cantools is not installed.
    """
    try:
        text = text_of(path.read_bytes())
    except FileNotFoundError:
        raise LogError("no such DBC file", where=str(path), next_step="check --dbc") from None
    except OSError as e:
        raise LogError(f"cannot be read: {e.strerror}", where=str(path), next_step="check --dbc") from None
    bad: list[BadLine] = []
    try:
        database = _parse(text, path)
    except _BrokenError as broken:
        bad, rest = _salvage(text)
        if broken.line and not bad:
            bad.append(BadLine(broken.line, "".join(text.split("\n")[broken.line - 1 : broken.line])))
        try:
            database = _parse(rest, path)
        except _BrokenError:
            why = bad[0] if bad else broken
            raise LogError(f"cannot be read as DBC: {why}", where=str(path), next_step="check --dbc") from None
    messages, unfit = _messages(database)
    if not messages:
        what = f"cannot be read as DBC: {bad[0]}" if bad else "the DBC file defines no message"
        raise LogError(what, where=str(path), next_step="check --dbc")
    return Definitions(path, messages, tuple(sorted([*bad, *unfit], key=lambda b: b.number)))


class _BrokenError(Exception):
    """cantools cannot read the text; `line` is where, 0 when it does not say."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        found = re.search(r"at line (\d+)", words)
        self.line = int(found[1]) if found else 0


def _parse(text: str, path: Path) -> Any:
    try:
        import cantools
    except ImportError:
        raise LogError(
            "reading CAN definitions needs cantools", where=str(path), next_step='pip install "hagane[intake]"'
        ) from None
    # cantools warns of overlapping signals through logging; strict=False reads such files, as members have them
    logging.getLogger("cantools").setLevel(logging.ERROR)
    try:
        return cantools.database.load_string(text, database_format="dbc", strict=False)
    except Exception as e:
        # cantools raises many kinds for a damaged file
        raise _BrokenError(str(e).splitlines()[0] if str(e) else type(e).__name__) from None


def _salvage(text: str) -> tuple[list[BadLine], str]:
    """The lines that cannot be read, and a DBC of those that define messages and can."""
    bad: list[BadLine] = []
    blocks: dict[str, list[str]] = {}
    extras: list[str] = []
    idents: dict[str, str] = {}
    current, in_ns = "", False
    for number, line, word in _statements(text):
        in_ns = word == "NS_" or (in_ns and line == word)
        if in_ns:
            continue
        if word == "BO_":
            found = _BO.fullmatch(line)
            name = found[1] if found else (re.findall(rf"\b{_NAME}\b", line)[1:2] or ["?"])[0]
            current = name if found and name not in blocks else ""
            if current:
                blocks[current] = [line]
                idents[line.split()[1]] = current
            else:
                bad.append(BadLine(number, line, name))
        elif word == "SG_":
            found = _SG.fullmatch(line)
            if current and found:
                blocks[current].append(" " + line)
            elif current:
                bad.append(BadLine(number, line, current, (re.findall(_NAME, line)[1:2] or ["?"])[0]))
        elif word in _KEPT:
            if _KEPT[word].fullmatch(line):
                extras.append(line)
            elif word != "VAL_":
                # it says how a signal is coded: without it the whole message cannot be trusted
                bad.append(BadLine(number, line, idents.get("".join(line.split()[1:2]), "?")))
        elif not _OTHERS.match(word):
            bad.append(BadLine(number, line))
    # without one of its signals the multiplexer of a message may be gone
    muxed = {n for n, lines in blocks.items() if any((m := _SG.match(s.strip())) and m[2] for s in lines[1:])}
    bad = [BadLine(b.number, b.text, b.message) if b.message in muxed else b for b in bad]
    lost = {b.message for b in bad if b.message and not b.signal}
    kept = {n: lines for n, lines in blocks.items() if n not in lost}
    known = {(i, re.findall(r"\w+", line)[1]) for i, name in idents.items() for line in kept.get(name, [])[1:]}
    body = [line for lines in kept.values() for line in ["", *lines]]
    body += ["", *(e for e in extras if tuple(re.findall(r"\w+", e)[1:3]) in known)]
    return bad, "\n".join(['VERSION ""', "NS_ :", "BS_:", "BU_:", *body]) + "\n"


def _statements(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, line and first word of each statement; comments and tables that run over lines count once."""
    inside = False
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        quotes = len(re.findall(r'(?<!\\)"', line))
        word = (re.match(r"\w+", line) or [""])[0]
        if inside:
            # a definition inside an open quote: the quote was never closed
            inside = quotes % 2 == 0 and not (_BO.fullmatch(line) or _SG.fullmatch(line))
            if inside or quotes % 2:
                continue
        elif word not in ("BO_", "SG_", "VAL_") and quotes % 2:
            inside = True
        if line:
            yield number, line, word


def _messages(database: Any) -> tuple[dict[str, Message], list[BadLine]]:
    messages: dict[str, Message] = {}
    unfit: list[BadLine] = []
    twice: set[str] = set()
    for m in database.messages:
        twice |= {m.name} & set(messages)
        ident = int(m.frame_id) | (EXTENDED if m.is_extended_frame else 0)
        signals = {}
        for s in m.signals:
            sizes = (32, 64) if s.conversion.is_float else range(1, 65)
            if s.length in sizes:
                signals[s.name] = _signal(s)
            else:
                unfit.append(BadLine(0, f"{s.name} has {s.length} bits", m.name, s.name))
        orphans = [s for s in signals.values() if s.selector and s.selector not in signals]
        unfit += [BadLine(0, f"{s.name} has lost its multiplexer {s.selector}", m.name, s.name) for s in orphans]
        messages[m.name] = Message(m.name, ident, {n: s for n, s in signals.items() if s not in orphans})
    for name in sorted(twice):
        del messages[name]
        unfit.append(BadLine(0, f"two messages are called {name}", name))
    return messages, unfit


def _signal(s: Any) -> Signal:
    return Signal(
        name=s.name,
        start=int(s.start),
        length=int(s.length),
        big_endian=s.byte_order == "big_endian",
        signed=bool(s.is_signed),
        is_float=bool(s.conversion.is_float),
        scale=float(s.scale),
        offset=float(s.offset),
        unit=s.unit or "",
        selector=s.multiplexer_signal or "",
        selected_by=tuple(int(v) for v in s.multiplexer_ids or ()),
        choices={int(k): str(v) for k, v in (s.choices or {}).items()},
    )


def text_of(data: bytes) -> str:
    """Text of a DBC: UTF-8; else Shift-JIS when all of it is and it has kana or kanji of the common rows; else cp1252.

    In Windows-1252 the lead bytes of those rows (81 to 9F) are quotation marks and the like, before plain letters.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        text = data.decode("cp932")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")
    pairs = [c.encode("cp932") for c in text if ord(c) > 0x7F]
    pairs = [p for p in pairs if len(p) == 2]
    likely = sum(0x81 <= p[0] <= 0x9F and (p[1] >= 0x80 or p[0] in (0x82, 0x83)) for p in pairs)
    return text if pairs and 2 * likely >= len(pairs) else data.decode("cp1252", "replace")
