"""History of an OPC UA server into Episodes. The "log" is a small TOML file that names the server and the span:

    [opcua]
    endpoint = "opc.tcp://10.1.2.3:4840"
    start = "2026-01-05T08:00:00+09:00"
    end = "2026-01-05T12:00:00+09:00"

Sources are node ids ("ns=2;s=FURNACE.T1") or browse paths from Objects on ("2:Line/2:Furnace/2:T1"). User and
password come from environment variables that the file names, never from the file. Stamps are the sources' own; how
much later the server stamped them is said in a note. Nothing but the endpoint is ever connected to, and only when
the file itself is given: a folder of logs does not reach out.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlparse
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from hagane.intake.files import head_of, read_bytes
from hagane.intake.opcua_client import Server, fetch
from hagane.intake.opcua_values import Readings
from hagane.intake.options import Options
from hagane.intake.quality import BAD, GOOD, UNCERTAIN
from hagane.intake.series import APPLIED_ENDING, Series, series_episodes, sources_of, spans_by_silence, told_spans
from hagane.intake.table import clean_unit
from hagane.terms import ConfigError, Embodiment, Episode, LogError
from hagane.terms.toml import parse_toml


@dataclass(frozen=True)
class OpcuaHistory:
    """The table [opcua] of such a file.

    Raises:
        ConfigError: an endpoint that is none, or that carries a password.
    """

    endpoint: str
    """opc.tcp://host:port/path"""
    start: str
    """ISO 8601; without a zone it is in `Options.timezone`."""
    end: str
    """ISO 8601, after start; both ends are included."""
    page: int = 1000
    """Readings asked for at a time; 0 leaves it to the server."""
    namespace: str = ""
    """Namespace URI of sources that name none ("s=FURNACE.T1", "Line/T1"): indexes change when a server restarts."""
    user_env: str = ""
    """Environment variable with the user name."""
    password_env: str = ""
    """Environment variable with the password."""
    security: str = ""
    """Policy, mode, certificate, key: "Basic256Sha256,SignAndEncrypt,client.der,client.pem"; files beside this one."""
    timeout_s: float = 10.0
    """Longest wait for an answer."""

    def __post_init__(self) -> None:
        url = urlparse(self.endpoint)
        if url.scheme != "opc.tcp" or not url.hostname:
            raise ConfigError(f"no endpoint: {self.endpoint!r}", next_step='as "opc.tcp://10.1.2.3:4840"')
        if url.username or url.password:
            raise ConfigError(
                "the endpoint carries a user", next_step="name environment variables: user_env, password_env"
            )
        if not 0 <= self.page <= 1_000_000 or not self.timeout_s > 0:
            raise ConfigError("page must be 0 to 1000000 and timeout_s positive")


@dataclass(frozen=True)
class _File:
    opcua: OpcuaHistory


def sniff(path: Path) -> bool:
    """True for a .toml file with a table [opcua]: a folder's .toml files are no logs, so that none reaches out."""
    if path.suffix.lower() != ".toml":
        return False
    head = head_of(path, 1 << 16)
    if b"[opcua]" not in head:
        return False
    try:
        return isinstance(tomllib.loads(head.decode("utf-8")).get("opcua"), dict)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return b"\n[opcua]" in b"\n" + head.replace(b"\r", b"")


def read(path: Path, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    """Episodes of the history that a file names, told apart by silences of more than ten minutes.

    Raises:
        ConfigError: the file is wrong, or an environment variable that it names is not set.
        LogError: the server cannot be reached or is lost on the way; a node is missing, keeps no history, or holds no
            numbers; no reading lies in the span.
    """
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError("not UTF-8 text", where=str(path), next_step="save the file as UTF-8") from None
    about = parse_toml(text, _File, where=str(path)).opcua
    server = _server(about, path, options)
    observed = [s for c in embodiment.observe for s in sources_of(c)]
    commanded = [s for c in embodiment.act for s in sources_of(c)]
    # a node id of a number or of bytes has no name that could end in other letters
    applied = [s + APPLIED_ENDING for s in commanded if not re.search(r"(^|;)[igb]=", s)]
    readings = fetch(server, tuple(dict.fromkeys(observed)), tuple(dict.fromkeys((*commanded, *applied))))
    if not any(len(r.values) for r in readings.values()):
        raise LogError(
            f"no reading from {about.start} to {about.end}", where=str(path), next_step="choose another start and end"
        )
    series = {source: _series(r) for source, r in readings.items()}
    spans, more = told_spans(series, spans_by_silence(series, options.gap_s, path.stem), embodiment, str(path))
    notes = [*(text for source, r in readings.items() for text in _notes(source, r)), *more]
    return series_episodes(series, spans, embodiment, _digest(readings), options.task, notes)


def _server(about: OpcuaHistory, path: Path, options: Options) -> Server:
    first, last = (_time(about, key, path, options.timezone) for key in ("start", "end"))
    if first >= last:
        raise ConfigError("end is not after start", where=str(path), next_step="give the span in order")
    user, password = (_variable(name, path) for name in (about.user_env, about.password_env))
    if user and not about.security and not _loopback(about.endpoint):
        raise ConfigError(
            "a password would cross the network in clear",
            where=str(path),
            next_step='add security = "Basic256Sha256,SignAndEncrypt,client.der,client.pem"',
        )
    return Server(
        about.endpoint,
        first,
        last,
        about.page,
        about.namespace,
        user,
        password,
        _security(about.security, path),
        about.timeout_s,
        str(path),
    )


def _time(about: OpcuaHistory, key: str, path: Path, zone: str) -> datetime:
    text = str(getattr(about, key))
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{key} is no time: {text!r}", where=str(path), next_step="as 2026-01-05T08:00:00Z") from None
    if at.tzinfo is None:
        if not zone:
            raise ConfigError(
                f"{key} has no zone", where=str(path), next_step="write +09:00 behind it, or pass --read timezone=..."
            )
        at = at.replace(tzinfo=ZoneInfo(zone))
    return at


def _variable(name: str, path: Path) -> str:
    if name and not os.environ.get(name):
        raise ConfigError(
            f"the environment variable {name} is not set", where=str(path), next_step=f"export {name}=..."
        )
    return os.environ[name] if name else ""


def _loopback(endpoint: str) -> bool:
    host = urlparse(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _security(words: str, path: Path) -> str:
    """asyncua's security string with its files found beside the TOML file."""
    if not words:
        return ""
    parts = [w.strip() for w in words.split(",")]
    if len(parts) not in (4, 5):
        raise ConfigError("security needs four parts", where=str(path), next_step="Policy,Mode,certificate,key")
    files = [str(path.parent / p) for p in parts[2:]]
    missing = next((f for f in files if not Path(f).is_file()), "")
    if missing:
        raise ConfigError(f"no such file: {missing}", where=str(path), next_step="give it beside this file")
    return ",".join([*parts[:2], *files])


def _series(r: Readings) -> Series:
    """Readings in order of time; the two highest bits of a status are its grade (Part 4, 7.39)."""
    order = np.argsort(r.source_ns, kind="stable")
    grade = np.array([GOOD, UNCERTAIN, BAD, BAD], np.int8)[r.status[order] >> 30]
    late_ns = _late_ns(r)
    latency_ns = int(np.median(late_ns)) if len(late_ns) else 0
    there = np.ones(len(order), bool)
    return Series(r.source_ns[order], r.values[order], there, grade, clean_unit(r.unit), latency_ns)


def _late_ns(r: Readings) -> NDArray[np.int64]:
    """How long after its source the server stamped each reading that tells both."""
    both = r.from_source & (r.server_ns != 0)
    return np.asarray((r.server_ns - r.source_ns)[both], np.int64)


def _notes(source: str, r: Readings) -> Iterator[str]:
    """What is worth saying of a node: its latency, stamps that are the server's, readings out of order."""
    late_s = _late_ns(r) / 1e9
    if len(late_s) and late_s.any():
        median, least, most = np.median(late_s), late_s.min(), late_s.max()
        spread = f"least {least:.3f}, most {most:.3f}"
        yield f"{source}: the server stamped readings {median:.3f} s after their source ({spread})"
    if not r.from_source.all():
        yield f"{source}: {int((~r.from_source).sum())} readings have no source time: the server's is taken"
    behind = int((np.diff(r.source_ns) < 0).sum())
    if behind:
        yield f"{source}: {behind} readings came before an earlier one: put in order of time"


def _digest(readings: Mapping[str, Readings]) -> str:
    """sha256 of what was read: the same history gives the same digest, whichever way it came."""
    sha = hashlib.sha256()
    for source in sorted(readings):
        r = readings[source]
        sha.update(f"{source}\n{len(r.values)}\n{r.unit}\n".encode())
        for part in (r.source_ns, r.server_ns, r.values, r.status):
            sha.update(np.ascontiguousarray(part).tobytes())
    return sha.hexdigest()
