"""Reads msgpack tokens one by one, and believes no length before it has seen that the bytes are there."""

from __future__ import annotations

import struct
from typing import Any, Literal

from hagane.terms import WireError

Token = tuple[Literal["value", "list", "map"], Any]

# first byte -> (struct format, bytes)
_NUMBERS = {
    **{0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"},
    **{0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"},
}
_READ = {code: struct.Struct(form) for code, form in _NUMBERS.items()}
_LENGTH = {1: struct.Struct(">B"), 2: struct.Struct(">H"), 4: struct.Struct(">I")}
# first byte -> (kind, bytes of the length that follows)
_SIZED = {
    **{0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4)},
    **{0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4)},
    **{0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4)},
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


class Cursor:
    """A place in a message. `token` reads what stands there and moves on."""

    def __init__(self, data: bytes, items: int, text_bytes: int) -> None:
        self.data, self.at = data, 0
        self.items_left, self.text_bytes = items, text_bytes

    def token(self) -> Token:
        """The next value, or the start of a list or map with its count.

        Raises:
            WireError: the message ends early, holds an extension type, or is over its limits.
        """
        self.items_left -= 1
        if self.items_left < 0:
            raise WireError("too many values in one message")
        if self.at >= len(self.data):
            raise WireError("the message ends early")
        code = self.data[self.at]
        self.at += 1
        if code < 0x80:
            return "value", code
        if code >= 0xE0:
            return "value", code - 0x100
        if code < 0x90:
            return self._group("map", code & 0x0F)
        if code < 0xA0:
            return self._group("list", code & 0x0F)
        if code < 0xC0:
            return "value", self.text(code & 0x1F)
        if code in _SIZED:
            kind, width = _SIZED[code]
            size: int = self._number(_LENGTH[width])
            if kind == "bytes":
                return "value", self._take(size)
            if kind == "text":
                return "value", self.text(size)
            return self._group("list" if kind == "list" else "map", size)
        if code in _READ:
            return "value", self._number(_READ[code])
        if code in _CONSTANTS:
            return "value", _CONSTANTS[code]
        raise WireError(f"msgpack type 0x{code:02x} is not read", next_step="send no extension types or time stamps")

    def _group(self, kind: Literal["list", "map"], count: int) -> Token:
        # every entry takes at least one byte and one item, so an invented count is refused here
        entries = count * 2 if kind == "map" else count
        if entries > min(self.items_left, len(self.data) - self.at):
            raise WireError(f"a {kind} of {count} entries does not fit the message or its limits")
        return kind, count

    def _number(self, form: struct.Struct) -> Any:
        end = self.at + form.size
        if end > len(self.data):
            raise WireError("the message ends early")
        (value,) = form.unpack_from(self.data, self.at)
        self.at = end
        return value

    def _take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise WireError(f"{size} bytes were promised, {len(self.data) - self.at} are there")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def text(self, size: int) -> str:
        """The text of so many bytes that begins here.

        Raises:
            WireError: too long, not all there, or no UTF-8.
        """
        if size > self.text_bytes:
            raise WireError(f"a text of {size} bytes, at most {self.text_bytes} are read")
        try:
            return self._take(size).decode()
        except UnicodeDecodeError:
            raise WireError("a text that is no UTF-8") from None
