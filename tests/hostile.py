"""Hostile code inside a jail: it reads every file, speaks the broker's protocol raw, and skips all of our code.

Run as a program with a JSON job on stdin; writes to stdout, as JSON, everything that it could get: replies, keys, and
what those keys open in any file. A judge outside looks for plaintext in it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FORMS = [
    "{}\0",
    "../{}",
    "road-a/../{}",
    "./{}",
    "{} ",
    "{}\u200b",
    "\u202e{}",
    "{}/",
    "%7b{}",
    "/{}",
    "{}\n",
    "",
    "*",
    "~",
]


class Wire:
    """A raw connection that is made again whenever it breaks."""

    def __init__(self, path: str) -> None:
        self.path, self.replies, self.link = path, [b""][:0], self.dial(path)

    def dial(self, path: str) -> socket.socket:
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(60)
        link.connect(path)
        return link

    def raw(self, data: bytes, *, wait: bool = True) -> bytes:
        try:
            self.link.sendall(data)
            if not wait:
                self.link.shutdown(socket.SHUT_WR)
            head = self.take(4)
            reply = self.take(struct.unpack(">I", head)[0]) if len(head) == 4 else b""
        except OSError:
            reply = b""
        if reply:
            self.replies.append(reply)
        if not reply or not wait or reply.startswith(b'{"error"'):
            self.link.close()
            self.link = self.dial(self.path)
        return reply

    def take(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (part := self.link.recv(size - len(data))):
            data += part
        return data

    def say(self, message: Any) -> Any:
        text = message if isinstance(message, bytes) else json.dumps(message, separators=(",", ":")).encode()
        reply = self.raw(struct.pack(">I", len(text)) + text)
        with contextlib.suppress(ValueError):
            return json.loads(reply)
        return {}


def forged(dataset: str) -> Iterator[str]:
    """Names that another reader could take for the data set's."""
    for form in FORMS:
        yield form.format(dataset)
    yield dataset.upper()
    yield dataset.replace("-", "\u2010")
    yield "".join(chr(ord(c) + 0xFEE0) if c.isalnum() else c for c in dataset)
    yield dataset.replace("a", "\u0430")


def shards_of(folders: list[str]) -> list[str]:
    """Every shard id that lies on the disk."""
    lists = [json.loads((Path(f) / "sealed.json").read_text()) for f in folders]
    return [e["shard"] for listed in lists for e in listed["files"].values()]


def ask_all(wire: Wire, job: dict[str, Any], rng: random.Random) -> None:
    """Ask for what is granted, then for everything else in every way that comes to mind."""
    granted, denied, shards = job["granted"], job["denied"], shards_of(job["folders"])
    for shard in shards:  # before any ask
        wire.say({"do": "key", "dataset": denied, "shard": shard})
    wire.say({"do": "ask", "dataset": granted, "purpose": "anchor"})
    for purpose in ("anchor", "view", "export", "Anchor", "", "anchor\0", "*"):
        wire.say({"do": "ask", "dataset": denied, "purpose": purpose})
    for name in (granted, denied, *forged(denied), *forged(granted)):
        wire.say({"do": "ask", "dataset": name, "purpose": "anchor"})
        for shard in rng.sample(shards, 3) if name not in (granted, denied) else shards:
            wire.say({"do": "key", "dataset": name, "shard": shard})
            wire.say({"do": "key", "dataset": name, "shard": shard.upper()})
    for shard in shards:  # a map with a key twice: two readers could each believe another
        text = f'{{"do":"key","dataset":"{granted}","dataset":"{denied}","shard":"{shard}"}}'
        wire.say(text.encode())
        wire.say({"dataset": denied, "shard": shard, "do": "key"})
        wire.say({"do": "key", "dataset": denied, "shard": shard, "allowed": True})
        wire.say({"do": "key", "dataset": [granted, denied], "shard": shard})
    for do in ("note", "tell"):
        for kind in ("ask", "erase", "grant", "run", "../x"):
            more = {"kind": kind, "body": {"dataset": denied}} if do == "note" else {"event": kind, "fields": {}}
            wire.say({"do": do, **more})
    wire.say({"do": "note", "kind": "run", "body": {"steps": 1, "text": "SMUGGLED-PLAINTEXT"}})


def fuzz(wire: Wire, job: dict[str, Any], rng: random.Random) -> None:
    """Random frames, replays with changed bytes, wrong lengths, deep maps."""
    shards = shards_of(job["folders"])
    seeds = [
        json.dumps(m, separators=(",", ":")).encode()
        for m in (
            {"do": "key", "dataset": job["granted"], "shard": shards[0]},
            {"do": "ask", "dataset": job["denied"], "purpose": "anchor"},
            {"do": "note", "kind": "run", "body": {"steps": 1}},
            {"do": "tell", "event": "step", "fields": {"loss": 1.5}},
        )
    ]
    for i in range(job["frames"]):
        data = bytearray(rng.choice(seeds))
        match rng.randrange(5):
            case 0:
                data = bytearray(rng.randbytes(rng.randrange(1, 200)))
            case 1 | 2:
                for _ in range(rng.randrange(1, 4)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
            case 3:
                a, b = rng.randrange(len(data)), rng.randrange(len(data))
                data[a:b] = rng.choice(seeds)[a : b + rng.randrange(9)]
            case _:
                data = bytearray(rng.choice([b"[", b'{"do":']) * rng.randrange(1, 50_000 if i % 50 == 0 else 50))
        length = (
            len(data) if rng.randrange(20) else rng.choice([0, 1, len(data) + 1, 1 << 20, (1 << 20) + 1, (1 << 32) - 1])
        )
        wire.raw(struct.pack(">I", length) + data, wait=length == len(data))


def keys_in(replies: list[bytes]) -> set[bytes]:
    """Everything in any reply that could be a key, and what needs no reply."""
    found = {bytes(32), b"\xff" * 32}
    for reply in replies:
        with contextlib.suppress(ValueError, AttributeError):
            for value in json.loads(reply).values():
                with contextlib.suppress(ValueError, TypeError):
                    found.add(base64.b64decode(value))
    return {k for k in found if len(k) == 32}


def open_all(folders: list[str], keys: set[bytes]) -> Iterator[bytes]:
    """What any of the keys opens in any file, record by record, and all bytes as they lie."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    for file in sorted(f for folder in folders for f in Path(folder).rglob("*") if f.is_file()):
        data = file.read_bytes()
        yield data
        for gcm in map(AESGCM, keys):
            head = data[:80]
            for i in range(300):
                nonce = i.to_bytes(12, "big")
                width = (int.from_bytes(head[12:16], "big") or 40) + 16
                for more in (head + nonce, head, nonce, None):
                    with contextlib.suppress(InvalidTag, ValueError):
                        yield gcm.decrypt(nonce, data[96 + i * width : 96 + (i + 1) * width], more)
                if 96 + i * width > len(data):
                    break


def main() -> None:
    job = json.load(sys.stdin)
    rng = random.Random(job["seed"])
    wire = Wire(job["socket"])
    ask_all(wire, job, rng)
    fuzz(wire, job, rng)
    keys = keys_in(wire.replies)
    got = [*wire.replies, *keys, *open_all(job["folders"], keys)]
    json.dump({"keys": len(keys) - 2, "got": [base64.b64encode(g).decode() for g in got]}, sys.stdout)


if __name__ == "__main__":
    main()
