"""A table of readings, from a CSV or a Parquet file: columns by header, their units, and where each fault lies.

Uses pyarrow for the cells. Numbers that carry a unit ("12.3 bar") are read when the whole column agrees on it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hagane.intake.check_units import plain_unit
from hagane.terms import LogError

EMPTY = (
    *("", "NA", "N/A", "#N/A", "null", "NULL", "None", "-", "--", "---", "Bad", "BAD", "Bad Input", "No Data"),
    *("I/O Timeout", "Pt Created", "Not Connect", "Shutdown", "Calc Failed", "欠測"),
)
"""Cells that mean "no reading" in exports of plant historians. NaN is not among them: it is a fault to be found."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_CELL = rf"^\s*(?P<number>{_NUMBER}|[nN]a[nN])\s*(?P<unit>[\p{{L}}°℃℉%‰Ω][^,;]{{0,15}}?)?\s*$"
_UNIT_IN_HEADER = re.compile(r"^(?P<name>.*?)\s*[\[(［（](?P<unit>[^\])］）]*)[\])］）]\s*$")


Only = tuple[str, Callable[[str], bool]]
"""A column of text, and which of its words keep their rows."""


@dataclass(frozen=True, eq=False)
class Numbers:
    """A column as numbers."""

    values: NDArray[np.float64]
    """[N], NaN where a cell is empty."""
    present: NDArray[np.bool_]
    """[N] where a cell has a value."""
    unit: str
    """Unit of the column; "" when none is given."""


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of a file, parsed but not yet understood."""

    where: str
    """Path, for messages."""
    names: tuple[str, ...]
    """All headers of the file without their units, loaded or not."""
    units: dict[str, str]
    """Unit of a column by name, where the header, a unit row or the file's own metadata gives one."""
    columns: Any
    """pyarrow table of the columns that were asked for, by these names; cells are numbers, text or times."""
    line_of: Callable[[int], str]
    """Where a row of the file is, in words: "log.csv:12" or "log.parquet, row 11"."""
    digest: str
    """sha256 of the file's own bytes."""
    rows: NDArray[np.int64] | None = None
    """[N] the file's row of each row here; None when they are the same."""
    cut: str = ""
    """Why the file's last row is not to be trusted; "" when the file is whole."""
    unsure_row: int | None = None
    """The file's row that may be cut in the middle of a number; None when no row is."""
    decimal_comma: bool = False
    """Numbers within text are written 12,5."""
    notes: tuple[str, ...] = ()
    """What had to be found out in order to read the file, in words."""

    def __len__(self) -> int:
        return int(self.columns.num_rows)

    def place(self, row: int, name: str = "") -> str:
        """Words for a cell: file and line, column."""
        line = self.line_of(row if self.rows is None else int(self.rows[row]))
        return line + (f", column {name!r}" if name else "")

    def column(self, name: str) -> Any:
        """A column as one pyarrow array; text that stands in a dictionary is plain text again."""
        import pyarrow as pa

        column = self.columns[name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # of a table without rows
            column = pa.array([], column.type)
        return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column

    def strings(self, name: str) -> Any:
        """A column as a pyarrow array of text."""
        import pyarrow as pa

        column = self.column(name)
        if pa.types.is_string(column.type):
            return column
        try:
            return column.cast(pa.string())
        except pa.ArrowException:
            where = f"{self.where}, column {name!r}"
            what = f"the column holds {column.type}, not text"
            raise LogError(what, where=where, next_step="export it as text or numbers") from None

    def numbers(self, name: str, rows: NDArray[np.int64] | None = None, unit: str = "") -> Numbers:
        """A column as numbers, of all rows or of some.

        Raises:
            LogError: a cell that is no number, or two units in the column; names file, line and column.
        """
        column = self.column(name)
        if rows is not None:
            column = column.take(rows)
        unit = unit or self.units.get(name, "")

        def place(row: int) -> str:
            return self.place(row if rows is None else int(rows[row]), name)

        return _numbers(column, unit, self.decimal_comma, place)

    def word(self, name: str, row: int) -> str:
        """One cell as text; "" when it is empty."""
        value = self.columns[name][row].as_py()
        return "" if value is None else str(value)

    def sure(self) -> NDArray[np.bool_]:
        """[N] False for a row that may be cut in the middle of a number."""
        rows = np.arange(len(self)) if self.rows is None else self.rows
        return np.asarray(rows != (-1 if self.unsure_row is None else self.unsure_row))

    def header(self, source: str) -> str | None:
        """The header that a source means: exactly, or but for capitals and full-width letters."""
        return find_name(source, self.names)

    def newest_first(self) -> Table:
        """The table with its rows the other way round."""
        order = np.arange(len(self), dtype=np.int64)[::-1]
        rows = order.copy() if self.rows is None else self.rows[::-1]
        return replace(self, columns=self.columns.take(order), rows=rows)


class TableFile(Protocol):
    """A file that was opened: its headers are known, its columns are not yet read."""

    @property
    def where(self) -> str:
        """Path, for messages."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Headers without their units."""
        ...

    def peek(self) -> Table:
        """All columns of the first rows."""
        ...

    def load(self, wanted: Sequence[str], only: Only | None = None) -> Table:
        """Read some columns, of all rows or only of some.

        Raises:
            LogError: damaged or truncated.
        """
        ...


def rows_with(column: Any, keep: Callable[[str], bool]) -> NDArray[np.int64]:
    """[M] rows of a pyarrow column of text whose word is to be kept; `keep` is asked once a word."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    coded = column.cast(pa.string()).dictionary_encode()
    words = coded.dictionary.to_pylist()
    kept = np.array([keep(str(w)) for w in words] + [False], bool)
    codes = coded.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
    return np.flatnonzero(kept[codes]).astype(np.int64)


def find_name(source: str, names: Sequence[str]) -> str | None:
    """The name that a source means: exactly, or but for capitals and full-width letters; None when none or two do."""
    if source in names:
        return source
    same = [n for n in names if same_name(n) == same_name(source)]
    return same[0] if len(same) == 1 else None


def same_name(name: str) -> str:
    """One spelling a name: small letters, no full-width forms."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def split_header(cells: Sequence[str], where: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names without their units, and the units: "炉温（℃）" is the column 炉温 in °C.

    Raises:
        LogError: two columns of one name, or a single column.
    """
    names, units = [], {}
    for k, cell in enumerate(cells):
        match = _UNIT_IN_HEADER.match(cell.strip())
        name = (match["name"] if match else cell).strip().strip('"') or f"column {k + 1}"
        if match and match["unit"].strip():
            units[name] = clean_unit(match["unit"])
        names.append(name)
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise LogError(f"two columns are called {twice[0]!r}", where=where, next_step="rename one of them")
    if len(names) < 2:
        raise LogError("the header has one column", where=where, next_step="a table has a time and a value at least")
    return tuple(names), units


def clean_unit(unit: str) -> str:
    """A unit in plain letters: ℃ is °C, ％ is %, ㎥ is m3. The sign of micro stays what it is."""
    return unicodedata.normalize("NFKC", unit).strip().replace("μ", "µ")


def _numbers(column: Any, unit: str, decimal_comma: bool, place: Callable[[int], str]) -> Numbers:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column, unit = _from_text(column, unit, decimal_comma, place)
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif pa.types.is_null(kind):
        return Numbers(np.full(len(column), np.nan), np.zeros(len(column), bool), unit)
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise LogError(f"the column holds {kind}, not numbers", where=place(0), next_step="export it as numbers")
    present = column.is_valid().to_numpy(zero_copy_only=False)
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return Numbers(np.array(values, np.float64), np.array(present, bool), unit)


def _from_text(column: Any, unit: str, decimal_comma: bool, place: Callable[[int], str]) -> tuple[Any, str]:
    import pyarrow as pa
    import pyarrow.compute as pc

    column = column.cast(pa.string())
    column = pc.if_else(pc.is_in(column, pa.array(EMPTY, pa.string())), pa.scalar(None, pa.string()), column)
    if decimal_comma:
        column = pc.replace_substring_regex(column, r"^(\s*[-+]?\d*),(\d+)", r"\1.\2")
    try:
        return column.cast(pa.float64()), unit
    except pa.ArrowInvalid:
        pass
    present = column.is_valid().to_numpy(zero_copy_only=False)
    parts = pc.extract_regex(column, _CELL)
    bad = np.flatnonzero(parts.is_null().to_numpy(zero_copy_only=False) & present)
    if len(bad):
        cell = column[int(bad[0])].as_py()
        raise LogError(f"not a number: {cell[:40]!r}", where=place(int(bad[0])), next_step="repair or empty the cell")
    return pc.struct_field(parts, "number").cast(pa.float64()), _one_unit(column, parts, present, unit, place)


def _one_unit(column: Any, parts: Any, present: NDArray[np.bool_], unit: str, place: Callable[[int], str]) -> str:
    """The unit that the header and all cells agree on."""
    import pyarrow.compute as pc

    coded = pc.struct_field(parts, "unit").fill_null("").dictionary_encode()
    words = [clean_unit(str(w)) for w in coded.dictionary.to_pylist()]
    meanings = [plain_unit(w) if w else "no unit" for w in words]
    codes = coded.indices.to_numpy()
    rows = np.flatnonzero(present)
    known = plain_unit(unit) if unit else meanings[codes[rows[0]]] if len(rows) else ""
    odd = np.array([m != known and not (m == "no unit" and unit) for m in meanings], bool)
    wrong = rows[odd[codes[rows]]] if len(rows) else rows
    if len(wrong):
        cell = column[int(wrong[0])].as_py()
        raise LogError(
            f"two units in one column: {cell[:40]!r} after values in {known}",
            where=place(int(wrong[0])),
            next_step="export the column in one unit",
        )
    return unit or next((words[codes[r]] for r in rows[:1]), "")
