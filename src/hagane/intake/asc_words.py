"""The words of a block of text lines as arrays, and numbers out of them: whole columns at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_DIGIT = np.full(256, 255, np.uint8)
_DIGIT[np.frombuffer(b"0123456789ABCDEF", np.uint8)] = np.arange(16)
_DIGIT[np.frombuffer(b"abcdef", np.uint8)] = np.arange(10, 16)
_DOT, _DIGITS = ord("."), b"0123456789"

Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Words:
    """Where the words of each line begin and end. A line that lacks a word is never asked for its characters."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.bytes = np.frombuffer(text, np.uint8)
        word = np.concatenate([[False], self.bytes > 32, [False]])
        edges = np.flatnonzero(word[1:] != word[:-1])
        # a last word that no line has, so that an index for "none" always exists
        self.begins, self.ends = np.append(edges[0::2], 0), np.append(edges[1::2], 1)
        """[T + 1] first byte of each word, and the byte after its last."""
        self._line_ends = np.flatnonzero(self.bytes == 10)
        self.lines = len(self._line_ends)
        """Lines in the block."""
        begins = self.begins[:-1]
        self.first = np.searchsorted(begins, np.concatenate([[0], self._line_ends[:-1] + 1]))
        """[lines] index of the first word of each line."""
        self.counts = np.searchsorted(begins, self._line_ends) - self.first
        """[lines] words of each line."""

    def line(self, k: int) -> bytes:
        """Line k without the blanks around it."""
        begin = int(self._line_ends[k - 1]) + 1 if k else 0
        return self.text[begin : int(self._line_ends[k])].strip()

    def _word(self, lines: Ints, k: int) -> tuple[Ints, Flags]:
        """Index of word k of each line, and whether the line has it (else an index that is harmless)."""
        has = self.counts[lines] > k
        return np.where(has, self.first[lines] + k, -1), has

    def starts_with(self, lines: Ints, k: int, letters: bytes) -> Flags:
        """Whether word k is there and begins with one of these letters."""
        word, has = self._word(lines, k)
        return np.asarray(has & _among(letters)[self.bytes[self.begins[word]]])

    def ends_with(self, lines: Ints, k: int, letters: bytes) -> Flags:
        """Whether word k is there and ends with one of these letters."""
        word, has = self._word(lines, k)
        return np.asarray(has & _among(letters)[self.bytes[self.ends[word] - 1]])

    def has_length(self, lines: Ints, k: int, length: int) -> Flags:
        """Whether word k is there and has so many characters."""
        word, has = self._word(lines, k)
        return np.asarray(has & (self.ends[word] - self.begins[word] == length))

    def timed(self) -> Flags:
        """[lines] whether the line begins with a time stamp, as far as its first word's ends tell."""
        every = np.arange(self.lines)
        return self.starts_with(every, 0, _DIGITS) & self.ends_with(every, 0, _DIGITS)

    def is_classic(self) -> Flags:
        """[lines] whether the line reads `time channel id Rx|Tx d|r ...`."""
        every = np.arange(self.lines)
        kind = self.starts_with(every, 4, b"dDrR") & self.has_length(every, 4, 1)
        return kind & self.starts_with(every, 3, b"RrTt") & self.starts_with(every, 1, _DIGITS)

    def is_fd(self) -> Flags:
        """[lines] whether the line reads `time CANFD channel Rx|Tx id ...` and is no error frame."""
        every = np.arange(self.lines)
        named = self.has_length(every, 1, 5) & self.starts_with(every, 1, b"C") & self.ends_with(every, 1, b"D")
        error = self.starts_with(every, 4, b"Ee") & self.has_length(every, 4, len("ErrorFrame"))
        return named & ~error & (self.counts > 8)

    def numbers(self, lines: Ints, k: int, base: int, without_last: Flags | None = None) -> tuple[Ints, Flags]:
        """Word k of each line as a whole number, and where it is one; `without_last` leaves out its last letter."""
        word, has = self._word(lines, k)
        value, good = number(self, word, base, without_last)
        return value, good & has


def _among(letters: bytes) -> Flags:
    table = np.zeros(256, bool)
    table[np.frombuffer(letters, np.uint8)] = True
    return table


def number(words: Words, word: Ints, base: int, without_last: Flags | None = None) -> tuple[Ints, Flags]:
    """Words (by index) as whole numbers in this base, of at most 15 digits, and where they are such."""
    begins, ends = words.begins[word], words.ends[word]
    if without_last is not None:
        ends = ends - without_last
    widest = int((ends - begins).max(initial=0))
    value = np.zeros(len(word), np.int64)
    good = (ends > begins) & (ends - begins <= 15)
    for k in range(min(widest, 15)):
        place = begins + k
        inside = place < ends
        digit = _DIGIT[words.bytes[np.minimum(place, len(words.bytes) - 1)]].astype(np.int64)
        good &= ~inside | (digit < base)
        value = np.where(inside, value * base + digit, value)
    return value, good


def stamps_ns(words: Words, lines: Ints) -> tuple[Ints, Flags]:
    """First words of lines, seconds with up to nine decimals, as nanoseconds, and where they are such."""
    begins, ends = words.begins[words.first[lines]], words.ends[words.first[lines]]
    widest = int((ends - begins).max(initial=0))
    value, dots, decimals = np.zeros((3, len(lines)), np.int64)
    good = ends - begins <= 20
    for k in range(min(widest, 20)):
        place = begins + k
        inside = place < ends
        char = words.bytes[np.minimum(place, len(words.bytes) - 1)]
        dot = inside & (char == _DOT)
        digit = _DIGIT[char].astype(np.int64)
        inside &= ~dot
        good &= ~inside | (digit < 10)
        value = np.where(inside, value * 10 + digit, value)
        decimals += inside & (dots > 0)
        dots += dot
    good &= (dots == 1) & (decimals > 0) & (decimals <= 9) & (ends - begins - 1 - decimals <= 9)
    return value * 10 ** np.clip(9 - decimals, 0, 9), good
