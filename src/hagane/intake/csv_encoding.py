"""Bytes of a CSV as UTF-8: packed files, byte order marks, and the encodings that exports of older systems have.

UTF-8 is tried first. Where it fails, UTF-16 (zero bytes at every second place) and CP932 (the Shift-JIS of Windows)
are found by themselves, if the bytes can mean nothing else; a note says so. Anything else has to be told.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

from hagane.intake.files import read_bytes
from hagane.terms import LogError

GZIP_MAGIC = b"\x1f\x8b"
MOST_UNPACKED = 1 << 30
"""Bytes that a packed CSV may unpack to: a few kilobytes of zeros must not fill the memory."""

_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
# kana, kanji and the marks and forms that stand between them
_JAPANESE = re.compile(r"[\u3000-\u30ff\u4e00-\u9fff\uff01-\uff9f]")
_LIKELY = re.compile(r"[\u3041-\u30fe\u4e00-\u9fff]")
_SIGNS = re.compile(r"[\u2010-\u2027\u2100-\u22ff\u2460-\u26ff\u3200-\u33ff§¨°±´¶×÷Α-ωА-я\uffe0-\uffe5]")


def read_text_bytes(path: Path) -> tuple[bytes, bytes]:
    """Bytes of the file, and of the text in it: the same, but for a file packed with gzip.

    Raises:
        LogError: missing, empty, damaged, truncated, or unpacking to more than `MOST_UNPACKED` bytes.
    """
    raw = read_bytes(path)
    if not raw.startswith(GZIP_MAGIC):
        return raw, raw
    try:
        with gzip.open(path) as f:
            text = f.read(MOST_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as e:
        raise LogError(
            f"damaged or truncated gzip file: {e}", where=str(path), next_step="copy it again from the machine"
        ) from None
    if len(text) > MOST_UNPACKED:
        raise LogError(
            f"unpacks to more than {MOST_UNPACKED >> 20} MiB from {len(raw)} bytes",
            where=str(path),
            next_step="unpack it yourself if you trust it, or export shorter files",
        )
    if not text:
        raise LogError("the packed file is empty", where=str(path), next_step="export it again")
    return raw, text


def head_of_text(head: bytes) -> bytes:
    """The first bytes of text in the first bytes of a file, in UTF-8; b"" when they are no text; never raises."""
    if head.startswith(GZIP_MAGIC):
        try:
            head = zlib.decompressobj(31).decompress(head, 1 << 15)
        except zlib.error:
            return b""
    encoding = _marked(head) or _utf16_by_zeros(head)
    if encoding.startswith("utf-16"):
        head = head[: len(head) // 2 * 2].decode(encoding, "replace").encode()
    head = head.removeprefix(b"\xef\xbb\xbf")
    return b"" if re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]", head) else head


def to_utf8(raw: bytes, encoding: str, where: str) -> tuple[bytes, str]:
    """The text in UTF-8, and a note when the encoding had to be found.

    Raises:
        LogError: not text of the given encoding, nor of one that can be found without doubt.
    """
    chosen, note = encoding, ""
    if _is_utf8(encoding):
        chosen, note = _found(raw)
    if _is_utf8(chosen) and not note:
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        text = raw.decode(chosen)
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise LogError(
            f"byte 0x{raw[e.start]:02x} is not {chosen}",
            where=f"{where}:{line}",
            next_step="pass --read encoding=cp932 (or cp1252, euc_jp, utf-16, ...)",
        ) from None
    except LookupError:
        raise LogError(f"unknown encoding {encoding!r}", where=where, next_step="as cp932 or cp1252") from None
    if "\0" in text:
        raise LogError(
            "holds zero bytes: not text", where=where, next_step="pass --read encoding=utf-16, or export again"
        )
    return (raw if _is_utf8(chosen) else text.removeprefix("\ufeff").encode()), note


def _is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("-", "").replace("_", "") in ("utf8", "utf8sig")


def _found(raw: bytes) -> tuple[str, str]:
    """The encoding of bytes, and a note unless it is UTF-8 or marked."""
    if mark := _marked(raw):
        return mark, "" if mark == "utf-8" else f"read as {mark}: its byte order mark says so"
    if zeros := _utf16_by_zeros(raw[: 1 << 16]):
        return zeros, f"read as {zeros}: every second byte of its first lines is zero"
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        if _only_cp932(raw):
            return "cp932", "read as cp932 (Shift-JIS): it is not UTF-8, and Japanese words in no other encoding"
    return "utf-8", ""


def _marked(raw: bytes) -> str:
    return next((encoding for mark, encoding in _MARKS if raw.startswith(mark)), "")


def _utf16_by_zeros(head: bytes) -> str:
    """UTF-16 without a mark: of text in Latin letters and digits, one byte of two is zero; "" when it is not so."""
    even, odd = head[::2], head[1::2]
    if len(head) < 8 or not head.count(0):
        return ""
    high, low = odd.count(0) / len(odd), even.count(0) / len(even)
    if min(high, low) > 0.02 or max(high, low) < 0.4:
        return ""
    return "utf-16-le" if high > low else "utf-16-be"


def _only_cp932(raw: bytes) -> bool:
    """Whether bytes are Japanese in CP932, and neither in EUC-JP nor Western text that happens to decode.

    Common kana and kanji begin with bytes 0x81-0x9f in CP932, which are no letters of Western encodings; their
    letters (0xc0-0xff) decode to single rare kanji. Most Japanese letters must be of the first sort.
    """
    text = _japanese(raw, "cp932")
    if text is None or _japanese(raw, "euc_jp") is not None:
        return False
    letters = "".join(_LIKELY.findall(text))
    common = sum(pair[0] < 0xA0 for pair in (c.encode("cp932") for c in letters[:10_000]))
    return common >= 2 and common >= 0.6 * min(len(letters), 10_000)


def _japanese(raw: bytes, encoding: str) -> str | None:
    """The text, if all that is beyond ASCII in it is Japanese; else None."""
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        return None
    foreign = [c for c in set(text) if ord(c) > 126 and not _JAPANESE.match(c) and not _SIGNS.match(c)]
    return text if not foreign and _LIKELY.search(text) else None
