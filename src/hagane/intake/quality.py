"""Quality of readings as historians write it: OPC codes, OPC UA status codes, words in English and Japanese.

OPC DA (OPC Data Access 3.0, 6.8): the two highest bits of the low byte: 192 good, 64 uncertain, 0 bad. OPC UA
(Part 4, 7.39): the two highest bits of 32: 0 good, 0x40000000 uncertain, 0x80000000 bad. Zero is bad in the one and
good in the other: which it is follows from the other codes or the header, and is never guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.terms import Finding, LogError

GOOD, UNCERTAIN, BAD, UNKNOWN = 0, 1, 2, 3
"""Grades of a reading."""
HEADERS = (
    *("quality", "qual", "q", "quality_code", "qualitycode", "opc_quality", "opcquality", "status", "statuscode"),
    *("status_code", "品質", "品質コード", "ステータス", "状態", "良否"),
)
"""Headers, in small letters, of a column of qualities; with the tag's name before them in a wide table."""
_STATUS_LIKE = ("status", "ステータス", "状態")
_UA_LIKE = ("statuscode", "status_code")
_BETWEEN = (".", "_", " ", "-", ":", "")
_WORDS = (
    (UNCERTAIN, ("uncertain", "questionable", "suspect", "doubtful", "substituted", "不確", "疑", "推定", "代替")),
    (
        BAD,
        ("bad", "invalid", "error", "fault", "fail", "ng", "no data", "not ", "不良", "異常", "無効", "欠測", "故障"),
    ),
    (GOOD, ("good", "ok", "valid", "normal", "良", "正常", "有効", "true")),
)
_LETTERS = {"g": GOOD, "u": UNCERTAIN, "b": BAD, "false": BAD, "x": BAD}


def quality_header(tag: str, names: Iterable[str]) -> str | None:
    """Of a wide table's headers the one that holds the quality of a tag: TAG.Q, TAG_quality, TAG_STATUS, TAG 品質."""
    by_name = {n.casefold(): n for n in names}
    for ending in HEADERS:
        for between in _BETWEEN if ord(ending[0]) > 127 else _BETWEEN[:-1]:
            found = by_name.get(f"{tag}{between}{ending}".casefold())
            if found is not None:
                return found
    return None


def grades(column: Any, header: str, where: str) -> NDArray[np.int8] | None:
    """[N] grade of each cell of a column of qualities; None when its cells are no qualities at all.

    Args:
        column: pyarrow array of numbers, text or booleans.
        header: its name: "statuscode" has OPC UA's codes.
        where: words for the column, for messages.

    Raises:
        LogError: codes that mean good in one convention and bad in the other, and nothing tells which it is.
    """
    import pyarrow as pa

    if pa.types.is_boolean(column.type):
        flags = column.fill_null(False).to_numpy(zero_copy_only=False)
        return np.where(flags, GOOD, BAD).astype(np.int8)
    if not (pa.types.is_string(column.type) or pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return None
    coded = column.dictionary_encode()
    words = coded.dictionary.to_pylist()
    if len(words) > 10_000:
        return None
    codes = {k: int(number) for k, word in enumerate(words) if (number := _number(word)) is not None}
    table = np.full(len(words) + 1, UNKNOWN, np.int8)  # its last place is that of empty cells
    for k, word in enumerate(words):
        if k not in codes:
            table[k] = _grade_of_word(str(word))
    for k, grade in _grades_of_codes(codes, header, where).items():
        table[k] = grade
    if len(words) and (table[:-1] == UNKNOWN).all():
        return None
    return np.asarray(table[coded.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)])


def quality_finding(
    episode: str, stream: str, times_ns: NDArray[np.int64], grade: NDArray[np.int8], present: NDArray[np.bool_]
) -> list[Finding]:
    """One finding that counts the readings of a stream that arrived with a value and a quality below good."""
    low = present & (grade != GOOD)
    if not low.any():
        return []
    names = {UNCERTAIN: "uncertain", BAD: "bad", UNKNOWN: "of unknown quality"}
    parts = [f"{int((grade[low] == g).sum())} {word}" for g, word in names.items() if (grade[low] == g).any()]
    count = int(low.sum())
    text = f"{count} of {int(present.sum())} readings are not good: {', '.join(parts)}; they are not valid"
    return [Finding("bad-quality", episode, stream, int(times_ns[low].min()), count, text)]


def _number(word: Any) -> int | None:
    if isinstance(word, int | float):
        return int(word) if word == word and abs(word) < 1 << 53 else None
    text = str(word).strip()
    if not re.fullmatch(r"\d+(\.0*)?|0[xX][0-9a-fA-F]{1,8}", text):
        return None
    return int(text, 16) if text[:2] in ("0x", "0X") else int(float(text))


def _grades_of_codes(codes: dict[int, int], header: str, where: str) -> dict[int, int]:
    """Grade of each code, by place."""
    if not codes:
        return {}
    name = header.casefold()
    most = max(codes.values())
    # a status code in a signed column is negative where it is bad
    if most >= 1 << 30 or min(codes.values()) < 0 or name.endswith(_UA_LIKE):
        return {k: (GOOD, UNCERTAIN, BAD, BAD)[v >> 30 & 3] for k, v in codes.items()}
    if most < 64 and name.endswith(_STATUS_LIKE):
        raise LogError(
            f"codes from {min(codes.values())} to {most} may mean good or bad",
            where=where,
            next_step="export OPC qualities (192 is good), or call the column StatusCode if 0 is good (OPC UA)",
        )
    return {k: (BAD, UNCERTAIN, BAD, GOOD)[v >> 6 & 3] for k, v in codes.items()}


def _grade_of_word(word: str) -> int:
    text = unicodedata.normalize("NFKC", word).strip().casefold()
    if text in _LETTERS:
        return _LETTERS[text]
    return next((g for g, starts in _WORDS if text.startswith(starts)), UNKNOWN)
