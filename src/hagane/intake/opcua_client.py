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
from datetime import datetime
from typing import Any

from hagane.intake.opcua_values import Pages, Readings
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
    pages = Pages(where)
    while True:
        result = await node.history_read(details, point)
        result.StatusCode.check()
        page = list(result.HistoryData.DataValues or ()) if result.HistoryData is not None else []
        fresh = pages.add(page)
        if pages.count > most:
            raise LogError(
                f"more than {MOST_READINGS} readings", where=where, next_step="bring start and end closer together"
            )
        last_point, point = point, result.ContinuationPoint or None
        if point is not None:
            if point == last_point or not page:
                raise LogError(
                    "the server repeats a page without end", where=where, next_step="ask for another page size"
                )
            continue
        if not server.page or len(page) < server.page:
            return pages.readings(await _unit(node))
        if not fresh:
            raise LogError(f"{len(page)} readings or more at one time", where=where, next_step="choose a larger page")
        details.StartTime = pages.last


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
