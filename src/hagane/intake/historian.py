"""Plant historian exports into Episodes: CSV (also packed with gzip) and Parquet, in the wide and the long form.

One way for all four: a file is opened (`csv_table`, `parquet_table`), its headers say which form it has, and the
columns that channels ask for are read (`historian_wide`, `historian_long`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hagane.intake.csv_encoding import head_of_text
from hagane.intake.csv_table import delimiter_of, open_csv
from hagane.intake.files import head_of
from hagane.intake.historian_long import TAG_HEADERS, long_form, read_long
from hagane.intake.historian_wide import read_wide
from hagane.intake.options import Options
from hagane.intake.parquet_table import open_parquet, sniff_parquet
from hagane.intake.quality import HEADERS as QUALITY_HEADERS
from hagane.intake.series import APPLIED_ENDING, tags_of
from hagane.intake.sources import nearest
from hagane.intake.table import TableFile, same_name
from hagane.intake.table_time import time_columns
from hagane.terms import Embodiment, Episode, LogError

APPLIED_HEADER = APPLIED_ENDING
"""Ending of the header of a tag that holds an action as applied."""
EPISODE_HEADERS = (
    *("episode", "episode_id", "coil", "coil_id", "heat", "heat_id", "batch", "batch_id", "run", "run_id"),
    *(
        "colada",
        "bobina",
        "lot",
        "lot_id",
        "charge",
        "コイル",
        "コイル番号",
        "ロット",
        "ロット番号",
        "チャージ",
        "チャージ番号",
    ),
)
TASK_HEADERS, OUTCOME_HEADERS = ("task", "instruction"), ("outcome",)
"""Headers, in small letters, of the columns that name episodes, instructions and outcomes."""
_NUMBER = re.compile(r"\s*[-+]?[\d.]*(?:[eE][-+]?\d+)?\s*")


def sniff(path: Path) -> bool:
    """True for Parquet, and for text whose first lines are cells, with words in the first."""
    if not path.is_file():
        return False
    if sniff_parquet(path):
        return True
    whole = head_of(path, 1 << 15)
    head = head_of_text(whole)
    if not head or head.lstrip()[:1] in b"{[(<":
        return False
    lines = head.decode("utf-8", "replace").splitlines()
    d = delimiter_of(lines)
    cells = lines[0].split(d)
    if len(cells) < 2 or all(_NUMBER.fullmatch(c) for c in cells):
        return False
    rest = lines[1:20] if head.endswith(b"\n") or len(lines) < 2 else lines[1:-1][:19]
    return all(d in line for line in rest if line.strip())


def read(path: Path, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    """Episodes of a historian's export.

    Raises:
        LogError: not text, damaged or cut (unless `keep_whole`: then its whole rows are given), a cell that is no
            number, two units in one column, a tag that the file lacks, or a time that cannot be read.
    """
    file: TableFile
    if sniff_parquet(path):
        file = open_parquet(path)
    else:
        words = {*EPISODE_HEADERS, *TASK_HEADERS, *OUTCOME_HEADERS, *TAG_HEADERS, *QUALITY_HEADERS}
        file = open_csv(path, options, frozenset({*words, options.episode_column.lower()}))
    tags = tags_of(embodiment)
    times = time_columns(file.peek(), options.time_column)
    columns = _episode_columns(file.names, {same_name(t) for t in tags}, options.episode_column, file.where)
    form = long_form(file.names, tags)
    if form is not None:
        return read_long(file, form, times, columns, embodiment, options)
    return read_wide(file, times, columns, embodiment, options)


def _episode_columns(names: Sequence[str], used: set[str], wanted: str, where: str) -> dict[str, str]:
    """Headers of the columns that name episodes, instructions and outcomes, where the file has them."""
    if wanted and wanted not in names:
        raise LogError(f"no column {wanted!r}", where=f"{where}:1", next_step=nearest(wanted, names))
    found = {"episode": wanted} if wanted else {}
    kinds = (("episode", EPISODE_HEADERS), ("task", TASK_HEADERS), ("outcome", OUTCOME_HEADERS))
    for kind, headers in kinds:
        name = next((n for n in names if same_name(n) in headers and same_name(n) not in used), "")
        if name and kind not in found:
            found[kind] = name
    return found
