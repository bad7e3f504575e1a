"""The gateway: the keeper's part of serving sealed weights. The model computes in the jail, clients meet us."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from hagane.cli.house import House
from hagane.cli.keeper import kept, listening
from hagane.cli.noted import note_deployment
from hagane.cli.opens import Opens
from hagane.jail import Bind, Jailed
from hagane.serve import RelayPolicy, serve_policy
from hagane.terms import JailError

SOCKET = Path("/run/hagane/policy.sock")
"""Where the gateway is reached in a jail."""
START_S = 900.0
"""Seconds until the weights must be loaded."""
END_S = 10.0
"""Seconds that the jail has to end by itself when nobody asks it any more."""


@dataclass(frozen=True)
class Door:
    """How clients reach the gateway."""

    host: str
    """Address to listen on."""
    port: int
    """TCP port; 0 takes a free one."""
    api_key: str
    """When not empty, clients must send it."""
    timeout_s: float
    """Seconds until the model must have answered."""
    ready: Callable[[str, str, Sequence[str]], None]
    """Called with url, checkpoint id and machines once clients are served."""


def serve_sealed(argv: Sequence[str], home: Path, run: Path, door: Door) -> int:
    """Serve weights of a sealed run: the same verb loads them in a jail, and answers us.

    Raises:
        Refused: a contract does not permit it, or a key was erased; nothing was started.
        JailError: no jail can be made here, or the model in it hangs, died, or answers otherwise.
        WireError: the address cannot be listened on.
    """
    with tempfile.TemporaryDirectory(prefix="hagane-") as place:
        path = Path(place) / "policy.sock"
        with listening(path) as listener:
            gateway = Gateway(home, door, listener, (Bind(path, SOCKET),))
            code = kept(argv, lambda: Opens(home, "serve", runs=(run,)), gateway)
    assert code is not None, "a sealed run is opened in a jail only"
    return code


@dataclass(eq=False)
class Gateway:
    """Stands beside one jail (`keeper.Beside`)."""

    home: Path
    """The site's folder."""
    door: Door
    """How clients reach it."""
    listener: socket.socket
    """The jail connects to it, once."""
    sockets: tuple[Bind, ...]
    """As `Beside`."""
    _gone: threading.Event = field(default_factory=threading.Event)
    _stop: Callable[[], None] = lambda: None

    def __call__(self, house: House, jailed: Jailed) -> int:
        """As `Beside`."""
        known = house.machines()
        watcher = threading.Thread(target=self._watch, args=(jailed,), daemon=True)
        watcher.start()
        try:
            with closing(self._accept()) as link:
                policy = RelayPolicy(link, known, START_S, self.door.timeout_s)
                self._serve(policy)
                if policy.failed or self._gone.is_set():
                    raise _lost(policy.failed or "it ended")
            if not self._gone.wait(END_S):
                raise _lost(f"it did not end within {END_S:g} s")
            return 0
        finally:
            if not self._gone.is_set():
                jailed.kill()
            watcher.join()

    def _serve(self, policy: RelayPolicy) -> None:
        for machine in sorted(policy.embodiments):
            note_deployment(self.home, policy.checkpoint_id, machine)

        def until(stop: Callable[[], None]) -> None:
            policy.ended = self._stop = stop
            if self._gone.is_set():
                stop()

        door = self.door
        serve_policy(
            policy,
            policy.embodiments,
            host=door.host,
            port=door.port,
            api_key=door.api_key,
            checkpoint_id=policy.checkpoint_id,
            ready=lambda url: door.ready(url, policy.checkpoint_id, sorted(policy.embodiments)),
            until=until,
        )

    def _accept(self) -> socket.socket:
        self.listener.settimeout(START_S)
        try:
            link, _ = self.listener.accept()
        except OSError:
            raise _lost("it ended, or took too long, before it had loaded its weights") from None
        return link

    def _watch(self, jailed: Jailed) -> None:
        """Notice the jail's end, whoever waits for what."""
        jailed.wait()
        self._gone.set()
        self._stop()
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept


def _lost(why: str) -> JailError:
    return JailError(
        f"the model in the jail is not served any more: {why}",
        next_step="start `hagane serve` again, by a supervisor if it should be at once",
    )
