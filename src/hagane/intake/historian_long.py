"""Plant historian tables in the long form, one reading a row: time, tag, value, and often quality and unit.

The order of rows in such a table means nothing, so each tag is put in order of time. Rows of tags that no channel
asks for are dropped while the file is read. Bad and uncertain readings are not valid; a finding counts them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagane.intake.options import Options
from hagane.intake.quality import GOOD, HEADERS, grades
from hagane.intake.series import Series, Span, series_episodes, sources_of, spans_by_silence, tags_of, told_spans
from hagane.intake.sources import nearest
from hagane.intake.streams import unmapped, with_cut
from hagane.intake.table import Table, TableFile, clean_unit, find_name, same_name
from hagane.intake.table_time import parse_times
from hagane.terms import Embodiment, Episode, LogError

TAG_HEADERS = (
    *("tag", "tagname", "tag_name", "tag name", "tagid", "tag_id", "point", "pointname", "point_name", "point_id"),
    *("signal", "variable", "sensor", "item", "itemid", "item_id", "metric", "nodeid", "node_id", "name"),
    *(
        "タグ",
        "タグ名",
        "タグ名称",
        "タグid",
        "測定点",
        "計器",
        "計器番号",
        "信号",
        "信号名",
        "項目",
        "項目名",
        "ポイント",
    ),
)
VALUE_HEADERS = (
    "value",
    "val",
    "reading",
    "measurement",
    "値",
    "測定値",
    "計測値",
    "実測値",
    "データ",
    "valor",
    "wert",
)
UNIT_HEADERS = ("unit", "units", "uom", "eu", "engunit", "eng_unit", "engineeringunit", "単位")


@dataclass(frozen=True)
class LongForm:
    """Headers of a long table."""

    tag: str
    """Column of tag names."""
    value: str
    """Column of readings."""
    quality: str = ""
    """Column of qualities; "" when there is none."""
    unit: str = ""
    """Column of units; "" when there is none."""


def long_form(names: Sequence[str], asked: Sequence[str]) -> LongForm | None:
    """The headers of a long table; None when it is a wide one, or one whose columns are asked for as tags."""
    by_name = {same_name(n): n for n in reversed(names)}

    def first(words: Sequence[str]) -> str:
        return next((by_name[w] for w in words if w in by_name), "")

    tag, value = first(TAG_HEADERS), first(VALUE_HEADERS)
    if not tag or not value or any(find_name(s, names) in (tag, value) for s in asked):
        return None
    return LongForm(tag, value, first(HEADERS), first(UNIT_HEADERS))


def read_long(
    file: TableFile,
    form: LongForm,
    times: tuple[str, ...],
    episode_columns: Mapping[str, str],
    embodiment: Embodiment,
    options: Options,
) -> Iterator[Episode]:
    """Episodes of a long table.

    Args:
        file: the opened table.
        form: its headers.
        times: its time column, or date and clock.
        episode_columns: headers of the columns "episode", "task" and "outcome", where there are.
        embodiment: whose channels are read.
        options: how.

    Raises:
        LogError: a tag of an observed channel that the log never has, and whatever a wide table is refused for.
    """
    columns = dict.fromkeys((*times, form.tag, form.value, form.quality, form.unit, *episode_columns.values()))
    asked = {same_name(s) for s in tags_of(embodiment)}
    table = file.load([c for c in columns if c], (form.tag, lambda tag: same_name(tag) in asked))
    codes, tags = _codes(table, form.tag)
    headers = {s: tag for s in tags_of(embodiment) if (tag := find_name(s, tags)) is not None}
    for channel in embodiment.observe:
        for source in sources_of(channel):
            if source not in headers:
                raise LogError(
                    f"channel {channel.name!r} needs a tag {source!r}",
                    where=f"{file.where}, column {form.tag!r}",
                    next_step=nearest(source, _tags_in(file, form)),
                )
    times_ns, notes = parse_times(table, times, options)
    series, notes = _series(table, form, times_ns, codes, tags, headers, notes)
    spans = _spans(table, times_ns, episode_columns, series, options, stem_of(file.where))
    within = sum(s.count(p.first_ns, p.last_ns) for s in series.values() for p in spans)
    told, more = told_spans(series, spans, embodiment, file.where)
    episodes = series_episodes(series, told, embodiment, table.digest, options.task, (*notes, *more))
    return _said(episodes, table, told, sum(len(s) for s in series.values()) - within)


def stem_of(where: str) -> str:
    """A file's name without its endings."""
    stem = Path(where).name.removesuffix(".gz")
    return Path(stem).stem


def _said(episodes: Iterator[Episode], table: Table, spans: Sequence[Span], outside: int) -> Iterator[Episode]:
    """The episodes, with what is left out of all of them said in the first, and a cut in the last."""
    for episode in episodes:
        if outside and episode.id == spans[0].id:
            text = f"{outside} readings belong to no episode"
            episode = episode.with_findings(unmapped(episode.id, "*", text, outside))
        yield with_cut(episode, table.cut if episode.id == spans[-1].id else "")


def _tags_in(file: TableFile, form: LongForm) -> list[str]:
    """All tags that the file has."""
    import pyarrow.compute as pc

    tags = file.load([form.tag]).strings(form.tag)
    return [str(t) for t in pc.unique(tags.drop_null()).to_pylist()]


def _codes(table: Table, name: str) -> tuple[NDArray[np.int64], list[str]]:
    coded = table.strings(name).dictionary_encode()
    return coded.indices.to_numpy(zero_copy_only=False).astype(np.int64), [str(t) for t in coded.dictionary.to_pylist()]


def _series(
    table: Table,
    form: LongForm,
    times_ns: NDArray[np.int64],
    codes: NDArray[np.int64],
    tags: list[str],
    headers: Mapping[str, str],
    notes: tuple[str, ...],
) -> tuple[dict[str, Series], tuple[str, ...]]:
    """Series by source, each in order of time, and the notes with what was put in order."""
    small = codes.astype(np.uint16) if len(tags) < 1 << 16 else codes  # NumPy sorts small keys by radix
    order = np.argsort(small, kind="stable")
    borders = np.searchsorted(codes[order], np.arange(len(tags) + 1))
    grade = np.full(len(table), GOOD, np.int8)
    if form.quality:
        found = grades(table.column(form.quality), form.quality, f"{table.where}, column {form.quality!r}")
        if found is None:
            notes = (*notes, f"the column {form.quality!r} holds no qualities: not used")
        else:
            grade = found
    sure = table.sure()
    by_tag: dict[str, Series] = {}
    moved = 0
    for code, tag in enumerate(tags):
        rows = order[borders[code] : borders[code + 1]]
        behind = int((np.diff(times_ns[rows]) < 0).sum())
        if behind:
            moved += behind
            rows = rows[np.argsort(times_ns[rows], kind="stable")]
        numbers = table.numbers(form.value, rows, _unit(table, form, rows))
        by_tag[tag] = Series(times_ns[rows], numbers.values, numbers.present & sure[rows], grade[rows], numbers.unit)
    if moved:
        notes = (*notes, f"{moved} rows came before an earlier one of their tag: each tag was put in order of time")
    notes = (*table.notes, *notes)
    return {source: by_tag[tag] for source, tag in headers.items() if tag in by_tag}, notes


def _unit(table: Table, form: LongForm, rows: NDArray[np.int64]) -> str:
    """The unit of a tag, from its rows."""
    if not form.unit or not len(rows):
        return ""
    coded = table.strings(form.unit).take(rows).fill_null("").dictionary_encode()
    words = [clean_unit(str(w)) for w in coded.dictionary.to_pylist()]
    if len({w for w in words if w}) > 1:
        other = int(np.argmax(coded.indices.to_numpy() != coded.indices[0].as_py()))
        raise LogError(
            f"two units of one tag: {words[0]!r} and {words[int(coded.indices[other].as_py())]!r}",
            where=table.place(int(rows[other]), form.unit),
            next_step="export the tag in one unit",
        )
    return next((w for w in words if w), "")


def _spans(
    table: Table,
    times_ns: NDArray[np.int64],
    columns: Mapping[str, str],
    series: Mapping[str, Series],
    options: Options,
    stem: str,
) -> list[Span]:
    """Episodes by the episode column (each label one, from its first to its last stamp), or by silences."""
    if "episode" not in columns:
        return spans_by_silence(series, options.gap_s, stem)
    coded = table.strings(columns["episode"]).fill_null("").dictionary_encode()
    codes = coded.indices.to_numpy()
    order = np.lexsort((times_ns, codes))
    labels = [str(v) for v in coded.dictionary.to_pylist()]
    borders = np.searchsorted(codes[order], np.arange(len(labels) + 1))
    spans = []
    for k, label in enumerate(labels):
        rows = order[borders[k] : borders[k + 1]]
        if label and len(rows):
            words = {key: table.word(name, int(rows[0])) for key, name in columns.items()}
            first_ns, last_ns = int(times_ns[rows[0]]), int(times_ns[rows[-1]])
            spans.append(Span(f"{stem}-{label}", first_ns, last_ns, words.get("task", ""), words.get("outcome", "")))
    if not spans:
        raise LogError(
            "the column names no episode",
            where=f"{table.where}, column {columns['episode']!r}",
            next_step="pass --read episode=HEADER",
        )
    spans.sort(key=lambda s: s.first_ns)
    for a, b in itertools.pairwise(spans):
        if b.first_ns <= a.last_ns:
            raise LogError(
                f"the episodes {a.id!r} and {b.id!r} overlap in time",
                where=f"{table.where}, column {columns['episode']!r}",
                next_step="export one line a file, or pass --read episode=HEADER",
            )
    return spans
