"""Ways to run a policy server: in the foreground until a signal, or in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Mapping
from types import TracebackType

from hagane.serve.answer import Answerer
from hagane.serve.server import PolicyServer
from hagane.terms import Embodiment, Policy, WireError
from hagane.wire import Limits


def serve_policy(
    policy: Policy,
    embodiments: Mapping[str, Embodiment],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str = "",
    checkpoint_id: str = "",
    limits: Limits | None = None,
    ready: Callable[[str], None] = lambda url: None,
    until: Callable[[Callable[[], None]], None] = lambda stop: None,
) -> None:
    """Serve until SIGTERM or SIGINT; replies under way are finished first. Call it from the main thread.

    Args:
        policy: decides.
        embodiments: machines that it serves, by name.
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        api_key: when not empty, clients must send it.
        checkpoint_id: digest of the weights.
        limits: the largest request that is read.
        ready: called with the url once connections are taken.
        until: called at the start with what stops the server as a signal does; that may be called in any thread.

    Raises:
        WireError: the address cannot be listened on.
    """
    server = PolicyServer(Answerer(policy, embodiments, checkpoint_id, limits), host, port, api_key)

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in numbers:
            loop.add_signal_handler(number, stop.set)

        def end() -> None:
            with contextlib.suppress(RuntimeError):  # the loop ended by itself
                loop.call_soon_threadsafe(stop.set)

        until(end)
        await server.run(stop, ready)

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    try:
        asyncio.run(main())
    finally:
        # the loop leaves the system's own behind, which would kill a caller that is not done
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class ServerThread:
    """A policy server in a thread of this process, for tests, demos and notebooks.

    with ServerThread(policy, embodiments) as server:
        RemotePolicy(server.url)

    Args:
        policy: decides.
        embodiments: machines that it serves, by name.
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        api_key: when not empty, clients must send it.
        checkpoint_id: digest of the weights.
        limits: the largest request that is read.
        drain_s: how long a stop waits for replies that are being computed.
    """

    def __init__(
        self,
        policy: Policy,
        embodiments: Mapping[str, Embodiment],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str = "",
        checkpoint_id: str = "",
        limits: Limits | None = None,
        drain_s: float = 5.0,
    ) -> None:
        answerer = Answerer(policy, embodiments, checkpoint_id, limits)
        self._server = PolicyServer(answerer, host, port, api_key, drain_s=drain_s)
        self._thread = threading.Thread(target=self._run, name="hagane-serve", daemon=True)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._error: Exception | None = None
        self.url = ""
        """Address of the server while it runs."""

    def start(self) -> ServerThread:
        """Start, and return once connections are taken.

        Raises:
            WireError: the address cannot be listened on.
        """
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        return self

    def stop(self) -> None:
        """Finish the replies under way and close; returns when all is closed."""
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop ended by itself
                loop.call_soon_threadsafe(stop.set)
        self._thread.join()

    def __enter__(self) -> ServerThread:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _run(self) -> None:
        async def main() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            await self._server.run(self._stop, self._opened)

        try:
            asyncio.run(main())
        except WireError as e:
            self._error = e
        except Exception as e:
            self._error = WireError(f"the server could not run: {e}")
        finally:
            self._ready.set()

    def _opened(self, url: str) -> None:
        self.url = url
        self._ready.set()
