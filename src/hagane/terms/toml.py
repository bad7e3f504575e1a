"""Strict TOML into frozen dataclasses: no key is ignored, every message names file and line."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
import tomllib
import types
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from hagane.terms.errors import ConfigError

T = TypeVar("T")


def load_toml(path: Path, kind: type[T]) -> T:
    """Read a TOML file into a dataclass.

    Raises:
        ConfigError: the file is missing or is no TOML, a key is unknown or missing, a value has the wrong
            type; the message names file, line, key and the nearest valid key.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError("no such file", where=str(path), next_step="check the path") from None
    except (UnicodeDecodeError, OSError) as e:
        raise ConfigError(f"cannot be read as UTF-8 text: {e}", where=str(path)) from None
    return parse_toml(text, kind, where=str(path))


def parse_toml(text: str, kind: type[T], *, where: str = "toml") -> T:
    """As `load_toml`, from text; `where` names it in messages."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"not valid TOML: {e}", where=where) from None
    return cast(T, _Reader(text, where).build(kind, table, ()))


def dump_toml(value: Any) -> str:
    """TOML text of a dataclass: the inverse of `parse_toml`. None values are left out."""
    lines: list[str] = []
    _dump(_as_table(value), (), lines)
    return "\n".join(lines).strip() + "\n"


class _Reader:
    def __init__(self, text: str, where: str) -> None:
        self.text, self.where = text, where

    def fail(self, what: str, path: tuple[str, ...], next_step: str = "") -> ConfigError:
        line = find_line(self.text, path)
        return ConfigError(what, where=f"{self.where}:{line}" if line else self.where, next_step=next_step)

    def build(self, kind: type[Any], table: Mapping[str, Any], path: tuple[str, ...]) -> Any:
        fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
        for key in table:
            if key not in fields:
                near = difflib.get_close_matches(key, fields, 1)
                hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(fields)}"
                raise self.fail(f"unknown key `{key}`", (*path, key), hint)
        hints = _hints(cast(Any, kind))
        values = {k: self.convert(hints[k], v, (*path, k)) for k, v in table.items()}
        for name, f in fields.items():
            missing = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            if name not in values and missing:
                raise self.fail(f"missing key `{name}`", path, f"add `{name} = ...` to [{'.'.join(path) or 'top'}]")
        try:
            return kind(**values)
        except ConfigError as e:
            line = find_line(self.text, path)
            where = f"{self.where}:{line}" if line else self.where
            what = f"{e.where}: {e.what}" if e.where else e.what
            raise type(e)(what, where=where, next_step=e.next_step) from None

    def convert(self, hint: Any, value: Any, path: tuple[str, ...]) -> Any:
        origin, args = get_origin(hint), get_args(hint)
        if origin is Literal:
            if value in args:
                return value
            near = difflib.get_close_matches(str(value), [str(a) for a in args], 1)
            step = f"did you mean `{near[0]}`?" if near else f"use one of {', '.join(map(str, args))}"
            raise self.fail(f"`{path[-1]}` cannot be {value!r}", path, step)
        if origin in (Union, types.UnionType):
            inner = [a for a in args if a is not type(None)]
            return self.convert(inner[0], value, path)
        if origin is tuple:
            if not isinstance(value, list):
                value = [value]
            return tuple(self.convert(args[0], v, (*path, str(i))) for i, v in enumerate(value))
        if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
            if not isinstance(value, dict):
                raise self.fail(f"`{path[-1]}` must be a table", path)
            return {k: self.convert(args[1], v, (*path, k)) for k, v in value.items()}
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise self.fail(f"`{path[-1]}` must be a table", path)
            return self.build(cast(type[Any], hint), value, path)
        return self.scalar(hint, value, path)

    def scalar(self, hint: Any, value: Any, path: tuple[str, ...]) -> Any:
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if hint is Path and isinstance(value, str):
            return Path(value)
        if hint in (int, float, str, bool, date) and type(value) is hint:
            return value
        raise self.fail(f"`{path[-1]}` must be {hint.__name__}, not {value!r}", path)


def find_line(text: str, path: tuple[str, ...]) -> int:
    """Line (from 1) of a key path in TOML text; of its nearest parent when the key is not spelt out; 0 for none."""
    best, best_depth = 0, 0
    table: tuple[str, ...] = ()
    counts: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*(\[\[?)\s*([^\]]+?)\s*\]", line):
            parts = tuple(p.strip().strip("\"'") for p in header[2].split("."))
            table = ()
            for depth, part in enumerate(parts, 1):
                table = (*table, part)
                if header[1] == "[[" and depth == len(parts):
                    counts[table] = counts.get(table, -1) + 1
                if table in counts:  # a table inside the newest entry of a list of tables
                    table = (*table, str(counts[table]))
            here = table
        elif key := re.match(r"\s*([\w\-.\"']+)\s*=", line):
            here = (*table, *(p.strip("\"'") for p in key[1].split(".")))
        else:
            continue
        if len(here) > best_depth and path[: len(here)] == here:
            best, best_depth = number, len(here)
    return best


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _as_table(value: Any) -> dict[str, Any]:
    # what is no parameter is no key either
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}


def _dump(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    later: list[tuple[str, Any]] = []
    for key, value in table.items():
        nested = dataclasses.is_dataclass(value) or isinstance(value, Mapping)
        rows = isinstance(value, tuple | list) and any(dataclasses.is_dataclass(v) for v in value)
        if nested or rows:
            later.append((key, value))
        elif value is not None:
            lines.append(f"{_key(key)} = {_literal(value)}")
    for key, value in later:
        name = (*path, _key(key))
        entries = value if isinstance(value, tuple | list) else [value]
        brackets = "[[{}]]" if isinstance(value, tuple | list) else "[{}]"
        for entry in entries:
            lines += ["", brackets.format(".".join(name))]
            _dump(entry if isinstance(entry, Mapping) else _as_table(entry), name, lines)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key) else _literal(key)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | date) and not isinstance(value, str):
        return repr(value) if isinstance(value, int | float) else value.isoformat()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_literal(v) for v in value) + "]"
    # JSON's escapes are all TOML's too; TOML wants the delete character escaped as well
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
