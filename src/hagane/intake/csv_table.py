"""A wide CSV as columns: dialect, header with units, unit row, cells with units, and where each fault lies.

Uses pyarrow for the cells. Numbers that carry a unit ("12.3 bar") are read when the whole column agrees on it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.check_units import plain_unit
from hagane.intake.files import read_bytes
from hagane.intake.options import Options
from hagane.terms import LogError, digest_bytes

EMPTY = (
    *("", "NA", "N/A", "#N/A", "null", "NULL", "None", "-", "--", "---", "Bad", "BAD", "Bad Input", "No Data"),
    *("I/O Timeout", "Pt Created", "Not Connect", "Shutdown", "Calc Failed", "欠測"),
)
"""Cells that mean "no reading" in exports of plant historians. NaN is not among them: it is a fault to be found."""

EPISODE_HEADERS = (
    *("episode", "episode_id", "coil", "coil_id", "heat", "heat_id", "batch", "batch_id", "run", "run_id"),
    *("colada", "bobina", "lot", "lot_id", "charge", "コイル", "ロット"),
)
TASK_HEADERS, OUTCOME_HEADERS = ("task", "instruction"), ("outcome",)
"""Headers, in small letters, of the columns that name episodes, instructions and outcomes."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_UNIT_IN_HEADER = re.compile(r"^(?P<name>.*?)\s*[\[(](?P<unit>[^\])]*)[\])]\s*$")


@dataclass(frozen=True, eq=False)
class CsvTable:
    """A CSV file, parsed but not yet understood."""

    where: str
    """Path, for messages."""
    names: tuple[str, ...]
    """Headers without their units."""
    units: dict[str, str]
    """Unit of a column by name, where the header or a unit row gives one."""
    table: Any
    """pyarrow table with these names; cells are numbers or text."""
    text: bytes
    """The file in UTF-8."""
    header_lines: int
    """Lines above the first row of data."""
    digest: str
    """sha256 of the file's own bytes."""
    cut: str
    """Why the last row is not to be trusted; "" when the file is whole."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def place(self, row: int, name: str = "") -> str:
        """Words for a cell: file:line, column."""
        return f"{self.where}:{self.line(row)}" + (f", column {name!r}" if name else "")

    def line(self, row: int) -> int:
        """Line number, from 1, of a row of data (empty lines do not count as rows)."""
        seen = -1
        for number, line in enumerate(self.text.split(b"\n"), 1):
            if number > self.header_lines and line.strip():
                seen += 1
            if seen == row:
                return number
        return 0

    def strings(self, name: str) -> Any:
        """A column as a pyarrow array of text."""
        import pyarrow as pa

        column = self.table[name].combine_chunks()
        return column if pa.types.is_string(column.type) else column.cast(pa.string())

    def numbers(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_], str]:
        """Values (NaN where empty), where a cell has a value, and the unit ("" when none is given).

        Raises:
            LogError: a cell that is no number, or two units in the column; names file, line and column.
        """
        import pyarrow as pa

        column = self.table[name].combine_chunks()
        unit = self.units.get(name, "")
        present = ~column.is_null().to_numpy(zero_copy_only=False)
        if pa.types.is_null(column.type):
            return np.full(len(column), np.nan), present, unit
        if pa.types.is_string(column.type):
            column, unit = self._with_units(name, column, present, unit)
        elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            if not pa.types.is_boolean(column.type):
                raise LogError("the column holds times, not numbers", where=f"{self.where}, column {name!r}")
            column = column.cast(pa.int8())
        values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return np.array(values, np.float64), present, unit

    def _with_units(self, name: str, column: Any, present: NDArray[np.bool_], unit: str) -> tuple[Any, str]:
        import pyarrow as pa
        import pyarrow.compute as pc

        parts = pc.extract_regex(
            column, rf"^\s*(?P<number>{_NUMBER}|[nN]a[nN])\s*(?P<unit>[^\s\d][^\d]{{0,11}}\d?)?\s*$"
        )
        bad = np.flatnonzero(parts.is_null().to_numpy(zero_copy_only=False) & present)
        if len(bad):
            cell = column[int(bad[0])].as_py()
            raise LogError(
                f"not a number: {cell[:40]!r}",
                where=self.place(int(bad[0]), name),
                next_step="repair or empty the cell",
            )
        texts = np.array(pc.struct_field(parts, "unit").fill_null("").to_pylist())
        known = plain_unit(unit) if unit else None
        for k in np.flatnonzero(present).tolist() if len(set(texts[present])) > 1 or unit else []:
            here = plain_unit(texts[k]) if texts[k].strip() else "no unit"
            if known is None:
                known = here
            if here != known and not (here == "no unit" and unit):
                cell = column[k].as_py()
                raise LogError(
                    f"two units in one column: {cell[:40]!r} after values in {known}",
                    where=self.place(k, name),
                    next_step="export the column in one unit",
                )
        found = next((t for t in texts[present].tolist() if t.strip()), "")
        return pc.struct_field(parts, "number").cast(pa.float64()), unit or found.strip()


def load_csv(path: Path, options: Options) -> CsvTable:
    """Parse a CSV file.

    Raises:
        LogError: not text of the given encoding, no header, two columns of one name, a row of another width, no
            rows, or an end that is cut (unless `options.keep_whole`).
    """
    raw = read_bytes(path)
    text = _utf8(raw, options.encoding, str(path))
    head = text[: 1 << 16].decode("utf-8", "ignore").splitlines()
    delimiter = delimiter_of(head)
    rows = list(csv.reader(head[:3], delimiter=delimiter))
    names, units = _header(rows[0], str(path))
    header_lines = 1
    if len(rows) > 1 and _is_unit_row(rows[1], len(names)):
        units = {**units, **{n: u.strip() for n, u in zip(names, rows[1], strict=True) if u.strip()}}
        header_lines = 2
    table, cut = _parse(text, names, header_lines, delimiter, head, options, str(path))
    if cut and not options.keep_whole and not cut.startswith("no line break"):
        raise LogError(
            f"truncated file: {cut}",
            where=str(path),
            next_step="export it again, or pass --keep-whole to take the rows before",
        )
    if not table.num_rows:
        raise LogError("there is a header but no row", where=str(path), next_step="export it again")
    return CsvTable(str(path), names, units, table, text, header_lines, digest_bytes(raw), cut)


def delimiter_of(lines: Sequence[str]) -> str:
    """The separator of cells: of tab, semicolon and comma, the one that the header has most."""
    return max("\t;,", key=lambda d: lines[0].count(d)) if lines else ","


def _utf8(raw: bytes, encoding: str, where: str) -> bytes:
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise LogError(
            f"byte 0x{raw[e.start]:02x} is not {encoding}",
            where=f"{where}:{line}",
            next_step="pass --read encoding=cp1252 (or shift_jis, utf-16, ...)",
        ) from None
    except LookupError:
        raise LogError(f"unknown encoding {encoding!r}", where=where, next_step="as cp1252 or shift_jis") from None
    if "\0" in text:
        raise LogError(
            "holds zero bytes: not text", where=where, next_step="pass --read encoding=utf-16, or export again"
        )
    return raw if encoding.lower().replace("-", "") == "utf8" else text.encode("utf-8")


def _header(cells: Sequence[str], where: str) -> tuple[tuple[str, ...], dict[str, str]]:
    names, units = [], {}
    for k, cell in enumerate(cells):
        match = _UNIT_IN_HEADER.match(cell.strip())
        name = (match["name"] if match else cell).strip().strip('"') or f"column {k + 1}"
        if match and match["unit"].strip():
            units[name] = match["unit"].strip()
        names.append(name)
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise LogError(f"two columns are called {twice[0]!r}", where=f"{where}:1", next_step="rename one of them")
    if len(names) < 2:
        raise LogError("the header has one column", where=f"{where}:1", next_step="a wide CSV has a time and tags")
    return tuple(names), units


def _is_unit_row(cells: Sequence[str], width: int) -> bool:
    """Whether the second row holds units: as wide as the header, no digits but powers, short words."""
    words = [c.strip() for c in cells]
    if len(words) != width or sum(bool(w) for w in words) < max(1, width // 2):
        return False
    return all(not w or (len(w) <= 12 and not re.match(r"[-+.\d]", w) and w not in EMPTY) for w in words)


def _parse(
    text: bytes,
    names: tuple[str, ...],
    header_lines: int,
    delimiter: str,
    head: Sequence[str],
    options: Options,
    where: str,
) -> tuple[Any, str]:
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    odd: list[tuple[int, int, int]] = []

    def note(row: Any) -> str:
        odd.append((int(row.number or 0), int(row.actual_columns), int(row.expected_columns)))
        return "skip"

    words = {*EPISODE_HEADERS, *TASK_HEADERS, *OUTCOME_HEADERS, options.episode_column.lower()}
    body = "\n".join(head[1:50])
    comma = delimiter == ";" and bool(re.search(r"\d,\d", body)) and not re.search(r"\d\.\d", body)
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(text),
            read_options=pa_csv.ReadOptions(column_names=list(names), skip_rows=header_lines, use_threads=False),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter, invalid_row_handler=note),
            convert_options=pa_csv.ConvertOptions(
                null_values=list(EMPTY),
                strings_can_be_null=True,
                decimal_point="," if comma else ".",
                timestamp_parsers=["%not-a-format"],
                column_types={n: pa.string() for n in names if n.lower() in words},
            ),
        )
    except pa.ArrowInvalid as e:
        if "Empty CSV file" in str(e):
            return pa.table({n: pa.nulls(0) for n in names}), ""
        raise LogError(
            f"cannot be read as CSV: {str(e).splitlines()[0]}",
            where=where,
            next_step="the file may be cut: copy or export it again",
        ) from None
    ended = text.endswith(b"\n")
    if not odd:
        return table, "" if ended else "no line break after the last row: it is not used"
    rows_before = table.num_rows + len(odd)
    number, actual, expected = odd[0]
    last = number >= rows_before + header_lines
    if len(odd) == 1 and last and actual < expected and not ended:
        return table, f"the last row has {actual} of {expected} cells"
    raise LogError(
        f"a row has {actual} cells, the header has {expected}",
        where=f"{where}:{number}",
        next_step="repair the row, or export the file again",
    )
