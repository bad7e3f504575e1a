"""Runs verbs one after the other and watches for any try to reach beyond this machine; used by test_no_network.

Two witnesses: Python's audit events in this process and in its children (a sitecustomize on PYTHONPATH), and the
kernel's own count of packets of this namespace that had no route, which native code cannot go round.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import json
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

HOOK = """
import json, os, sys
_NAMES = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto",
          "socket.sendmsg", "socket.getnameinfo", "urllib.Request", "http.client.connect", "ftplib.connect"}
def _heard(event, args):
    if event in _NAMES:
        family = int(getattr(args[0], "family", 0)) if args else 0
        words = [repr(family), *(repr(a) for a in args if isinstance(a, (str, bytes, tuple)))]
        fd = os.open(os.environ["HAGANE_WATCH"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, (json.dumps([event, *words]) + "\\n").encode())
        os.close(fd)
sys.addaudithook(_heard)
"""
UNIX = "1"


def is_local(try_: list[str]) -> bool:
    """Whether a try stays on this machine: unix sockets, loopback addresses, and names for them."""
    _, family, *words = try_
    if family == UNIX:
        return True
    hosts = re.findall(r"'([^']*)'", " ".join(words))
    return bool(hosts) and _is_loopback(hosts[0])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def no_routes() -> int:
    """Packets of this network namespace that had no route, IPv4 and IPv6."""
    rows = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Ip:")]
    total = int(dict(zip(*rows, strict=True))["OutNoRoutes"])
    six = Path("/proc/net/snmp6")
    table = dict(line.split() for line in six.read_text().splitlines()) if six.exists() else {}
    return total + int(table.get("Ip6OutNoRoutes", 0))


def one(argv: list[str], watch: Path) -> dict[str, Any]:
    """Run a verb in this process; a step that begins with "+" starts a server that the next steps use."""
    from hagane.cli import main

    begun, routes = len(watch.read_text().splitlines()), no_routes()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code: object = main(argv)
        except SystemExit as e:
            code = e.code or 0
        except BaseException:
            code = traceback.format_exc()
    tries = [json.loads(line) for line in watch.read_text().splitlines()[begun:]]
    away = [t for t in tries if not is_local(t)]
    return {"argv": argv, "code": code, "said": said.getvalue()[-2000:], "tries": len(tries), "away": away,
            "no_routes": no_routes() - routes}  # fmt: skip


def served(argv: list[str]) -> tuple[subprocess.Popen[str], str]:
    """Start a server verb; the process and the address it says."""
    process = subprocess.Popen([sys.executable, "-m", "hagane", *argv], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"ws://\S+", line):
            return process, found[0]
    raise SystemExit(f"no server: {argv}")


def main() -> None:
    """argv: a JSON file with the steps. Prints one JSON line a step."""
    watch = Path(os.environ["HAGANE_WATCH"])
    watch.touch()
    exec(os.environ.get("HAGANE_PLANT", ""), {})
    server, address = None, ""
    try:
        for argv in json.loads(Path(sys.argv[1]).read_text()):
            if argv[0] == "+":
                server, address = served(argv[1:])
                continue
            print(json.dumps(one([address if word == "ADDRESS" else word for word in argv], watch)), flush=True)
    finally:
        if server:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
