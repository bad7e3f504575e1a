"""A Parquet file as a table: only the columns asked for are read, batch by batch.

What a file claims of itself is checked before memory is taken: a page of a few bytes can stand for a billion rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hagane.intake.files import head_of
from hagane.intake.table import Only, Table, clean_unit, rows_with, split_header
from hagane.terms import LogError, digest_file

MAGIC = b"PAR1"
MOST_BYTES = 4 << 30
"""Memory that the columns asked for may need; longer histories come in several files."""
_BATCH_ROWS = 1 << 17


@dataclass(frozen=True, eq=False)
class ParquetFile:
    """A Parquet file whose footer was read."""

    where: str
    """Path, for messages."""
    names: tuple[str, ...]
    """Column names without their units."""
    units: dict[str, str]
    """Unit of a column by name, from its name or from the field's metadata."""
    columns: dict[str, str]
    """The file's own name of each column."""
    file: Any
    """pyarrow.parquet.ParquetFile."""
    digest: str
    """sha256 of the file's own bytes."""

    def peek(self) -> Table:
        """All columns of the first rows, but nested ones."""
        import pyarrow as pa

        schema = self.file.schema_arrow
        flat = [n for n in self.names if not pa.types.is_nested(schema.field(self.columns[n]).type)]
        try:
            batch = next(self.file.iter_batches(batch_size=50, columns=[self.columns[n] for n in flat]), None)
        except (pa.ArrowException, OSError) as e:
            raise _damaged(self.where, e) from None
        if batch is None:
            raise LogError("there is a header but no row", where=self.where, next_step="export it again")
        columns = pa.Table.from_batches([batch]).select([self.columns[n] for n in flat]).rename_columns(flat)
        return Table(self.where, self.names, self.units, columns, self._line_of(), self.digest)

    def load(self, wanted: Sequence[str], only: Only | None = None) -> Table:
        """Read some columns, of all rows or only of some.

        Raises:
            LogError: damaged, no rows, a nested column, or more than fits the memory.
        """
        import pyarrow as pa

        own = [self.columns[n] for n in wanted]
        self._refuse_too_large(self.file.metadata.num_rows * len(own) * 8)
        schema = self.file.schema_arrow
        for name in own:
            if pa.types.is_nested(schema.field(name).type):
                raise LogError(
                    f"the column holds {schema.field(name).type}, not single values",
                    where=f"{self.where}, column {name!r}",
                    next_step="export one value a cell",
                )
        batches, rows, seen, held = [], [], 0, 0
        try:
            for batch in self.file.iter_batches(batch_size=_BATCH_ROWS, columns=own, use_threads=False):
                if only is not None:
                    kept = rows_with(batch.column(self.columns[only[0]]), only[1])
                    rows.append(kept + seen)
                    seen += batch.num_rows
                    batch = batch.take(kept)
                batches.append(batch)
                held += batch.nbytes
                self._refuse_too_large(held * 64 // 65)  # without the bits that say which cells are there
            table = pa.Table.from_batches(batches, schema=pa.schema([schema.field(n) for n in own]))
            table = table.select(own).rename_columns(list(wanted))
        except (pa.ArrowException, OSError) as e:
            raise _damaged(self.where, e) from None
        if not self.file.metadata.num_rows:
            raise LogError("there is a header but no row", where=self.where, next_step="export it again")
        places = None if only is None else np.concatenate(rows) if rows else np.zeros(0, np.int64)
        return Table(self.where, self.names, self.units, table, self._line_of(), self.digest, places)

    def _refuse_too_large(self, need: int) -> None:
        # by the rows, and by what was read so far: of a footer with a wrong byte, pyarrow's description of a column
        # ends the process
        if need > MOST_BYTES:
            raise LogError(
                f"its columns need {need / 2**20:.0f} MiB of memory ({self.file.metadata.num_rows} rows)",
                where=self.where,
                next_step=f"export files of at most {MOST_BYTES >> 30} GiB, as one a day",
            )

    def _line_of(self) -> Callable[[int], str]:
        return lambda row: f"{self.where}, row {row + 1}"


def sniff_parquet(path: Path) -> bool:
    """True for a file that begins as Parquet does."""
    return head_of(path, len(MAGIC)) == MAGIC


def open_parquet(path: Path) -> ParquetFile:
    """Read the footer of a Parquet file.

    Raises:
        LogError: the footer is missing or damaged, two columns of one name, or a single column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = str(path)
    try:
        with path.open("rb") as f:
            f.seek(-4, 2)
            end = f.read(4)
        if end != MAGIC:
            raise LogError(
                "truncated file: the footer of the Parquet file is missing",
                where=where,
                next_step="copy it again, or let the program that wrote it close it",
            )
        file = pq.ParquetFile(path, page_checksum_verification=True, memory_map=False, pre_buffer=False)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError) as e:
        raise _damaged(where, e) from None
    names, units = split_header(schema.names, where)
    for name, field in zip(names, schema, strict=True):
        told = {k.lower(): v for k, v in (field.metadata or {}).items()}
        unit = next((told[k] for k in (b"unit", b"units", b"uom") if k in told), b"")
        if unit:
            units.setdefault(name, clean_unit(unit.decode("utf-8", "replace")))
    return ParquetFile(where, names, units, dict(zip(names, schema.names, strict=True)), file, digest_file(path))


def _damaged(where: str, error: Exception) -> LogError:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return LogError(f"damaged Parquet file: {text[:160]}", where=where, next_step="copy it again from the machine")
