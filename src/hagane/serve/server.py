"""The policy server: openpi's WebSocket protocol, with limits.

A client connects to any path and gets the metadata as its first message; then one binary request, one binary
reply. An error is one TEXT message, then close code 1011. `GET /healthz` answers "OK", also while the policy
computes. Of several requests that wait on one connection only the newest is answered: an older observation is
worth nothing once there is a newer one (a client that waits for its replies never notices).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from http import HTTPStatus

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from hagane.serve.answer import LOG, Answerer, Worker
from hagane.terms import HaganeError, WireError

_QUIET = logging.getLogger("hagane.serve.connections")
# a peer's broken handshake is no event of ours, and its traceback helps nobody
_QUIET.setLevel(logging.CRITICAL)


class PolicyServer:
    """Answers many clients with one policy, one request at a time.

    Args:
        answerer: what is served.
        host: address to listen on; the default is reachable from this machine only.
        port: TCP port; 0 takes a free one.
        api_key: when not empty, clients must send "Authorization: Api-Key ..." with it.
        max_connections: clients at once; more are told 503.
        drain_s: how long a stop waits for replies that are being computed.
    """

    def __init__(
        self,
        answerer: Answerer,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str = "",
        max_connections: int = 64,
        drain_s: float = 10.0,
    ) -> None:
        self.answerer, self.host, self.port = answerer, host, port
        self._api_key, self._max_connections, self._drain_s = api_key.encode(), max_connections, drain_s
        self._clients: set[_Client] = set()
        self._worker: Worker | None = None

    async def run(self, stop: asyncio.Event, ready: Callable[[str], None] = lambda url: None) -> None:
        """Serve until `stop` is set, then finish the replies under way and close.

        Args:
            stop: set it (in this loop) to end.
            ready: called with the url once connections are taken.

        Raises:
            WireError: the address cannot be listened on.
        """
        self._worker = Worker(asyncio.get_running_loop())
        try:
            server = await self._listen()
            try:
                host, port = server.sockets[0].getsockname()[:2]
                self.port = port
                ready(f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}")
                await stop.wait()
            finally:
                await self._drain(server)
        finally:
            self._worker.stop()

    async def _listen(self) -> Server:
        try:
            return await serve(
                self._client,
                self.host,
                self.port,
                compression=None,
                max_size=self.answerer.limits.frame_bytes,
                max_queue=2,
                process_request=self._gate,
                close_timeout=2.0,
                logger=_QUIET,
            )
        except (OSError, OverflowError) as e:
            in_use = isinstance(e, OSError) and "in use" in str(e).lower()
            raise WireError(
                f"port {self.port} is in use" if in_use else f"cannot listen here: {e}",
                where=f"{self.host}:{self.port}",
                next_step="choose another with --port, or stop the server that uses it",
            ) from e

    async def _drain(self, server: Server) -> None:
        server.close(close_connections=False)
        for client in set(self._clients):
            client.finish()
        try:
            async with asyncio.timeout(self._drain_s):
                await server.wait_closed()
        except TimeoutError:
            LOG.warning("stopped before all replies were computed")
            for client in set(self._clients):
                client.task.cancel()

    def _gate(self, connection: ServerConnection, request: Request) -> Response | None:
        """Health, key and number of clients: before a WebSocket is opened."""
        if request.path.split("?")[0] == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if self._api_key:
            given = "".join(request.headers.get_all("Authorization")).encode()
            if not hmac.compare_digest(given, b"Api-Key " + self._api_key):
                return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong or missing Api-Key\n")
        if len(self._clients) >= self._max_connections:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "too many clients\n")
        return None

    async def _client(self, connection: ServerConnection) -> None:
        assert self._worker is not None
        task = asyncio.current_task()
        assert task is not None
        client = _Client(connection, self.answerer, self._worker, task)
        self._clients.add(client)
        try:
            await client.serve()
        except ConnectionClosed:
            pass  # the peer went away; nothing is owed to it
        finally:
            self._clients.discard(client)


class _Client:
    """One connection: a reader that keeps the newest message, and a loop that answers it."""

    def __init__(
        self, connection: ServerConnection, answerer: Answerer, worker: Worker, task: asyncio.Task[None]
    ) -> None:
        self.connection, self.answerer, self.worker, self.task = connection, answerer, worker, task
        self._newest: bytes | str | None = None
        self._news = asyncio.Event()
        self._ending = False

    def finish(self) -> None:
        """End after the reply to what has already been asked."""
        self._ending = True
        self._news.set()

    async def serve(self) -> None:
        """Answer until the peer closes, errs, or `finish` is called."""
        await self.connection.send(self.answerer.metadata)
        reader = asyncio.create_task(self._read())
        prev_ms: float | None = None
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                message, self._newest = self._newest, None
                if message is not None:
                    begin = time.perf_counter()
                    if not await self._answer(message, prev_ms):
                        return
                    prev_ms = 1e3 * (time.perf_counter() - begin)
                if self._ending:
                    await self.connection.close(1001, "the server stops")
                    return
        finally:
            reader.cancel()

    async def _read(self) -> None:
        try:
            async for message in self.connection:
                self._newest = message
                self._news.set()
        except ConnectionClosed:
            pass
        self.finish()

    async def _answer(self, message: bytes | str, prev_ms: float | None) -> bool:
        try:
            if isinstance(message, str):
                raise WireError("a text message; requests are binary msgpack maps")
            reply = await self.worker.submit(lambda: self.answerer.answer(message, prev_ms))
            await self.connection.send(reply)
            return True
        except HaganeError as e:
            text = str(e)
        except (ConnectionClosed, asyncio.CancelledError):
            raise
        except Exception:
            # a fault of ours: it goes to our log, never over the wire
            LOG.exception("a request could not be answered")
            text = "the server failed on this request\n  next: see the server's own log"
        await self.connection.send(text)
        await self.connection.close(1011, "error")
        return False
