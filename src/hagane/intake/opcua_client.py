"""Raw history from an OPC UA server (Part 11, HistoryRead), page by page, over the one connection that a file names.

asyncua (LGPL) speaks the protocol. A full page without a continuation point is not believed to be the last: some
servers cut there, so the next page is asked for from the last stamp on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.sources import nearest
from hagane.terms import ConfigError, HaganeError, LogError

MOST_READINGS = 20_000_000
"""Readings of one import; a server that never ends must not fill the memory."""
_NODE_ID = re.compile(r"(?:(?P<ns>ns=\d+;)|nsu=(?P<uri>[^;]+);)?(?P<id>[isgb]=.+)")
_LOST = ("BadConnectionClosed", "BadSessionClosed", "BadSecureChannelClosed", "BadTimeout", "BadServerHalted")


@dataclass(frozen=True)
class Server:
    """Where history is, and how it is asked for."""

    endpoint: str
    """opc.tcp://host:port/path"""
    first: datetime
    """Start of the span, with zone."""
    last: datetime
    """End of the span, with zone."""
    page: int
    """Readings asked for at a time; 0 leaves it to the server."""
    namespace: str
    """Namespace URI of sources that name none."""
    user: str
    """User name; "" for none."""
    password: str
    """Password."""
    security: str
    """asyncua's "Policy,Mode,certificate,key"; "" for none."""
    timeout_s: float
    """Longest wait for an answer."""
    where: str
    """Words for the file that names the server."""


@dataclass(frozen=True, eq=False)
class Readings:
    """History of one node, in the order of the server."""

    source_ns: NDArray[np.int64]
    """[N] time of the reading at its source; the server's where the source gives none."""
    server_ns: NDArray[np.int64]
    """[N] time at the server; the source's where the server gives none."""
    from_source: NDArray[np.bool_]
    """[N] whether the source gave a time."""
    values: NDArray[np.float64]
    """[N] NaN where there is none."""
    status: NDArray[np.uint32]
    """[N] OPC UA status codes."""
    unit: str
    """Engineering unit of the node; "" when it has none."""


def fetch(server: Server, sources: Sequence[str], optional: Sequence[str]) -> dict[str, Readings]:
    """History by source; nodes of `optional` may be missing.

    Raises:
        LogError: asyncua is missing, the server cannot be reached, refuses, or is lost on the way; a node that it
            lacks, that keeps no history or holds no numbers; more than `MOST_READINGS`.
    """
    try:
        import asyncua  # noqa: F401
    except ImportError:
        raise LogError(
            "reading OPC UA needs asyncua", where=server.where, next_step='pip install "hagane[opcua]"'
        ) from None
    with _quiet():
        return asyncio.run(_fetch(server, sources, optional))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """asyncua logs tracebacks of errors that are told to the caller anyway."""
    logger = logging.getLogger("asyncua")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


async def _fetch(server: Server, sources: Sequence[str], optional: Sequence[str]) -> dict[str, Readings]:
    from asyncua import Client

    client = Client(server.endpoint, timeout=server.timeout_s)
    try:
        if server.user:
            client.set_user(server.user)
            client.set_password(server.password)
        await client.set_security_string(server.security)
        await client.connect()
    except Exception as e:  # wrong certificates, sockets and answers raise anything
        raise LogError(
            f"cannot open a session: {_words(e)}", where=f"{server.where}: {server.endpoint}", next_step=_advice(e)
        ) from None
    found: dict[str, Readings] = {}
    at, read = "", 0
    try:
        uris = await client.get_namespace_array()
        for at in (*sources, *optional):
            node = await _node(client, uris, server, at)
            if node is None and at in sources:
                raise LogError(f"the server has no node {at!r}", where=server.where, next_step=_near(at, uris))
            if node is not None:
                found[at] = await _history(node, server, at, MOST_READINGS - read)
                read += len(found[at].values)
    except HaganeError:
        raise
    except Exception as e:  # a server may send what asyncua cannot parse
        raise _failed(e, server, at, len(found)) from None
    finally:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(client.disconnect(), 2.0)
    return found


async def _node(client: Any, uris: Sequence[str], server: Server, source: str) -> Any:
    """The node of a source: a node id, or browse names from Objects on ("Line/2:Furnace/T1"); None if missing."""
    from asyncua import ua

    own = _index(uris, server.namespace, server.where) if server.namespace else 0
    try:
        if match := _NODE_ID.fullmatch(source):
            index = _index(uris, match["uri"], server.where) if match["uri"] else own
            text = source if match["ns"] else f"ns={index};{match['id']}"
            node = client.get_node(ua.NodeId.from_string(text))
        else:
            parts = [re.fullmatch(r"(?:(\d+):)?(.+)", p) for p in source.strip("/").split("/")]
            names = [ua.QualifiedName(p[2], int(p[1]) if p[1] else own) for p in parts if p]
            skip = 1 if names and names[0].Name == "Objects" else 0
            node = await client.nodes.objects.get_child(names[skip:])
        await node.read_node_class()
    except ua.UaStatusCodeError as e:
        if _status(e) in ("BadNodeIdUnknown", "BadNodeIdInvalid", "BadNoMatch", "BadBrowseNameInvalid"):
            return None
        raise
    except ua.UaStringParsingError:
        raise ConfigError(f"no node id: {source!r}", next_step='as "ns=2;s=FURNACE.T1"') from None
    return node


def _index(uris: Sequence[str], uri: str, where: str) -> int:
    if uri not in uris:
        raise LogError(f"the server has no namespace {uri!r}", where=where, next_step=nearest(uri, uris))
    return list(uris).index(uri)


async def _history(node: Any, server: Server, source: str, most: int) -> Readings:
    """All readings of a node in the span.

    Raises:
        LogError: it keeps no history, or holds more than `most` readings in the span.
    """
    from asyncua import ua

    where = f"{server.where}, node {source!r}"
    if ua.AccessLevel.HistoryRead not in await node.get_access_level():
        raise LogError("the node keeps no history", where=where, next_step="ask the server's operator to historize it")
    details = ua.ReadRawModifiedDetails(
        IsReadModified=False, StartTime=server.first, EndTime=server.last, NumValuesPerNode=server.page
    )
    details.ReturnBounds = False
    point: bytes | None = None
    kept: list[Any] = []
    while True:
        result = await node.history_read(details, point)
        result.StatusCode.check()
        page = list(result.HistoryData.DataValues or ()) if result.HistoryData is not None else []
        fresh = _fresh(kept, page)
        kept += fresh
        if len(kept) > most:
            raise LogError(
                f"more than {MOST_READINGS} readings", where=where, next_step="bring start and end closer together"
            )
        last_point, point = point, result.ContinuationPoint or None
        if point is not None and (point == last_point or not page):
            raise LogError("the server repeats a page without end", where=where, next_step="ask for another page size")
        if point is None and (not server.page or len(page) < server.page):
            break
        if point is None:
            if not fresh:
                if len({_stamp(v) for v in page}) > 1 or len(page) < server.page:
                    break
                raise LogError(
                    f"{len(page)} readings or more at one time", where=where, next_step="choose a larger page"
                )
            details.StartTime = _stamp(kept[-1])
    return _readings(kept, await _unit(node), where)


def _fresh(kept: Sequence[Any], page: list[Any]) -> list[Any]:
    """A page without the readings that ended the page before: pages that begin at a stamp repeat those."""
    if not kept or not page:
        return page
    last = _stamp(kept[-1])
    tail = []
    for value in reversed(kept):
        if _stamp(value) != last:
            break
        tail.append(_key(value))
    fresh = []
    for value in page:
        key = _key(value)
        if _stamp(value) == last and key in tail:
            tail.remove(key)
        else:
            fresh.append(value)
    return fresh


def _stamp(value: Any) -> datetime:
    stamp = value.SourceTimestamp or value.ServerTimestamp or datetime(1970, 1, 1)
    return stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)


def _code(value: Any) -> int:
    """Status code of a reading; a server may leave out what is good."""
    return int(value.StatusCode.value) if value.StatusCode is not None else 0


def _key(value: Any) -> tuple[Any, ...]:
    return (_stamp(value), _code(value), repr(value.Value.Value if value.Value is not None else None))


def _readings(kept: Sequence[Any], unit: str, where: str) -> Readings:
    """asyncua's values as arrays; it makes an object of every reading, so this is a loop."""
    values = np.full(len(kept), np.nan)
    for k, value in enumerate(kept):
        number = value.Value.Value if value.Value is not None else None
        if isinstance(number, bool | int | float):
            values[k] = number
        elif number is not None:
            kind = "arrays" if isinstance(number, list) else type(number).__name__
            raise LogError(f"the node holds {kind}, not numbers", where=where, next_step="take it out of the sources")
    own = np.array([v.SourceTimestamp is not None for v in kept], bool)
    source = _ns([v.SourceTimestamp or v.ServerTimestamp for v in kept])
    server = _ns([v.ServerTimestamp or v.SourceTimestamp for v in kept])
    status = np.array([_code(v) for v in kept], np.uint32)
    return Readings(source, server, own, values, status, unit)


def _ns(stamps: Sequence[datetime | None]) -> NDArray[np.int64]:
    plain = [s.astimezone(UTC).replace(tzinfo=None) if s is not None and s.tzinfo else s for s in stamps]
    return np.array(plain, "datetime64[us]").astype("datetime64[ns]").astype(np.int64)


async def _unit(node: Any) -> str:
    from asyncua import ua

    try:
        about = await (await node.get_child(["0:EngineeringUnits"])).read_value()
    except ua.UaStatusCodeError as e:
        if _status(e) in _LOST:
            raise
        return ""
    return str(getattr(about.DisplayName, "Text", "") or "")


def _status(error: Exception) -> str:
    return type(error).__name__


def _words(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return "no answer in time"
    return f"{_status(error)}: {text}"[:160] if text else _status(error)


def _advice(error: Exception) -> str:
    if _status(error).startswith(("BadUser", "BadIdentity")):
        return "check the user and password in the environment variables that the file names"
    if _status(error).startswith(("BadSecurity", "BadCertificate")):
        return "check `security`, and that the server trusts the certificate"
    return "check `endpoint`, and that the server runs and can be reached from here"


def _failed(error: Exception, server: Server, source: str, whole: int) -> LogError:
    where = f"{server.where}: {server.endpoint}"
    if isinstance(error, OSError | TimeoutError | asyncio.TimeoutError) or _status(error) in _LOST:
        return LogError(
            f"the connection was lost at {source!r}, after {whole} whole tags ({_words(error)})",
            where=where,
            next_step="run it again: nothing was stored",
        )
    return LogError(
        f"no history of {source!r}: {_words(error)}",
        where=where,
        next_step="ask the server's operator whether this user may read history",
    )


def _near(source: str, uris: Sequence[str]) -> str:
    if source.startswith("ns=") or _NODE_ID.fullmatch(source):
        return f"check the node id; the server's namespaces are {', '.join(f'{k} {u}' for k, u in enumerate(uris))}"
    return 'check the browse path: names from Objects on, as "2:Line/2:Furnace/2:T1"'
