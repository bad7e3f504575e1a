"""A CSV file as a table: dialect, header with units, unit row, decimal comma, and a row cut at the end."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hagane.intake.csv_encoding import read_text_bytes, to_utf8
from hagane.intake.options import Options
from hagane.intake.table import EMPTY, Only, Table, clean_unit, rows_with, split_header
from hagane.terms import LogError, digest_bytes

_PEEK_LINES = 50
_LAST_UNSURE = "no line break after the last row: it is not used"


@dataclass(frozen=True, eq=False)
class CsvFile:
    """A CSV whose header was read."""

    where: str
    """Path, for messages."""
    names: tuple[str, ...]
    """Headers without their units."""
    units: dict[str, str]
    """Unit of a column by name, where the header or a unit row gives one."""
    text: bytes
    """The file in UTF-8."""
    delimiter: str
    """What separates cells."""
    header_lines: int
    """Lines above the first row of data."""
    digest: str
    """sha256 of the file's own bytes."""
    keep_whole: bool
    """Take the rows before a cut."""
    words: frozenset[str]
    """Columns (in small letters) that stay text, whatever they look like."""
    notes: tuple[str, ...]
    """What had to be found out."""

    def load(self, wanted: Sequence[str], only: Only | None = None) -> Table:
        """Read some columns, of all rows or only of some.

        Raises:
            LogError: a row of another width, no rows, or an end that is cut (unless `keep_whole`).
        """
        comma = self._decimal_comma()
        columns, cut = _parse(self, wanted, comma)
        if cut and not self.keep_whole and cut != _LAST_UNSURE:
            raise LogError(
                f"truncated file: {cut}",
                where=self.where,
                next_step="export it again, or pass --keep-whole to take the rows before",
            )
        if not columns.num_rows:
            raise LogError("no whole row", where=self.where, next_step="the file may be cut: copy it again")
        if cut == _LAST_UNSURE and columns.num_rows == 1:
            raise LogError("its only row has no end", where=self.where, next_step="the file may be cut: copy it again")
        unsure = columns.num_rows - 1 if cut == _LAST_UNSURE else None
        rows = None
        if only is not None:
            rows = rows_with(columns[only[0]], only[1])
            columns = columns.take(rows)
        line_of, digest = self._line_of(), self.digest
        return Table(self.where, self.names, self.units, columns, line_of, digest, rows, cut, unsure, comma, self.notes)

    def peek(self) -> Table:
        """All columns of the first rows."""
        lines = self.text.split(b"\n", _PEEK_LINES)
        start = self if len(lines) <= _PEEK_LINES else replace(self, text=b"\n".join(lines[:-1]) + b"\n")
        columns, _ = _parse(start, self.names, self._decimal_comma())
        return Table(self.where, self.names, self.units, columns, self._line_of(), self.digest)

    def _decimal_comma(self) -> bool:
        """Whether numbers are written 12,5: some of the first cells are so, and none is written 12.5."""
        head = self.text[: 1 << 16].decode("utf-8", "ignore").splitlines()[self.header_lines : 50]
        cells = [c.strip() for row in csv.reader(head, delimiter=self.delimiter) for c in row]
        comma = any(re.fullmatch(r"[-+]?\d*,\d+(?:[eE][-+]?\d+)?(\s*[^\d\s]+)?", c) for c in cells)
        return comma and not any(re.fullmatch(r"[-+]?\d*\.\d+(?:[eE][-+]?\d+)?", c) for c in cells)

    def _line_of(self) -> Callable[[int], str]:
        text, above, where = self.text, self.header_lines, self.where

        def line_of(row: int) -> str:
            seen = -1
            for number, line in enumerate(text.split(b"\n"), 1):
                seen += bool(number > above and line.strip())
                if seen == row:
                    return f"{where}:{number}"
            return where

        return line_of


def open_csv(path: Path, options: Options, words: frozenset[str] = frozenset()) -> CsvFile:
    """Decode a CSV file and read its header.

    Raises:
        LogError: not text of the given encoding, no header, two columns of one name.
    """
    raw, packed_text = read_text_bytes(path)
    text, note = to_utf8(packed_text, options.encoding, str(path))
    head = text[: 1 << 16].decode("utf-8", "ignore").splitlines()
    delimiter = delimiter_of(head)
    rows = list(csv.reader(head[:3], delimiter=delimiter))
    if not rows or not any(c.strip() for c in rows[0]):
        raise LogError("the first line is empty, not a header", where=f"{path}:1", next_step="export it again")
    names, units = split_header(rows[0], f"{path}:1")
    header_lines = 1
    if len(rows) > 1 and _is_unit_row(rows[1], len(names)):
        units = {**units, **{n: clean_unit(u) for n, u in zip(names, rows[1], strict=True) if u.strip()}}
        header_lines = 2
    above = re.match(rb"(?:[^\r\n]*(?:\r\n?|\n)){%d}" % header_lines, text)
    if above is None or not text[above.end() : above.end() + (1 << 16)].strip():
        raise LogError("there is a header but no row", where=str(path), next_step="export it again")
    notes = (note,) if note else ()
    digest = digest_bytes(raw)
    return CsvFile(str(path), names, units, text, delimiter, header_lines, digest, options.keep_whole, words, notes)


def delimiter_of(lines: Sequence[str]) -> str:
    """The separator of cells: of tab, semicolon and comma, the one that the header has most."""
    return max("\t;,", key=lambda d: lines[0].count(d)) if lines else ","


def _is_unit_row(cells: Sequence[str], width: int) -> bool:
    """Whether the second row holds units: as wide as the header, no digits but powers, short words."""
    words = [c.strip() for c in cells]
    if len(words) != width or sum(bool(w) for w in words) < max(1, width // 2):
        return False
    return all(not w or (len(w) <= 12 and not re.match(r"[-+.\d]", w) and w not in EMPTY) for w in words)


def _parse(file: CsvFile, wanted: Sequence[str], comma: bool) -> tuple[Any, str]:
    """The columns asked for, and words for a last row that is cut."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    odd: list[tuple[int, int, int]] = []

    def note(row: Any) -> str:
        odd.append((int(row.number or 0), int(row.actual_columns), int(row.expected_columns)))
        return "skip"

    names = list(file.names)
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(file.text),
            read_options=pa_csv.ReadOptions(column_names=names, skip_rows=file.header_lines, use_threads=False),
            parse_options=pa_csv.ParseOptions(delimiter=file.delimiter, invalid_row_handler=note),
            convert_options=pa_csv.ConvertOptions(
                # the word Bad stays: it is no number in a column of readings, and an answer in one of qualities
                null_values=[w for w in EMPTY if not w.lower().startswith("bad")],
                strings_can_be_null=True,
                decimal_point="," if comma else ".",
                timestamp_parsers=["%not-a-format"],
                column_types={n: pa.string() for n in names if n.lower() in file.words},
                include_columns=list(wanted),
            ),
        )
    except pa.ArrowInvalid as e:
        raise LogError(
            f"cannot be read as CSV: {str(e).splitlines()[0]}",
            where=file.where,
            next_step="the file may be cut: copy or export it again",
        ) from None
    ended = file.text.endswith((b"\n", b"\r"))
    if not odd:
        return table, "" if ended else _LAST_UNSURE
    rows_before = table.num_rows + len(odd)
    number, actual, expected = odd[0]
    last = number >= rows_before + file.header_lines
    if len(odd) == 1 and last and actual < expected and not ended:
        return table, f"the last row has {actual} of {expected} cells"
    raise LogError(
        f"a row has {actual} cells, the header has {expected}",
        where=f"{file.where}:{number}",
        next_step="repair the row, or export the file again",
    )
