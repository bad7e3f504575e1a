"""The key broker against honest and hostile jails: no key, and no word on the disk, that the keeper did not grant."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hagane.seal import Keyring, Ledger, open_folder, seal_folder
from hagane.seal.broker import CONNECTIONS, REFUSALS, Broker, Rules, Serving, serve
from hagane.seal.broker_client import Broker as Client
from hagane.seal.broker_wire import DEPTH, LIMIT, Ask, Note, Tell, decode_request, encode
from hagane.seal.key_life import erase
from hagane.seal.shards import Layout
from hagane.terms import ConfigError, Decision, HaganeError, Refused, StoreError, WireError
from tests.sealed_fixture import CONTRACT, OWNER

GRANTED, DENIED = "road-a", "road-b"


class Site:
    """Two sealed data sets of random bytes, one granted for "anchor", and the broker of one jail."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.keyring, self.ledger = folder, Keyring(folder / "keys"), Ledger(folder / "ledger.jsonl")
        self.plain: dict[str, bytes] = {}
        self.granted, self.told = {(GRANTED, "anchor")}, [("", {})][:0]
        for name in (GRANTED, DENIED):
            source = folder / f"plain-{name}"
            source.mkdir()
            data = self.plain[name] = os.urandom(400)
            (source / "rows.bin").write_bytes(data[:200])
            (source / "blobs.bin").write_bytes(data[200:])
            layouts = {"rows.bin": Layout(40), "blobs.bin": Layout(40)}
            seal_folder(source, folder / "sets" / name, self.keyring, name, OWNER, CONTRACT, layouts)
        self.socket = str(folder / "b.sock")

    def decide(self, dataset: str, purpose: str) -> Decision:
        allowed = (dataset, purpose) in self.granted
        return Decision(allowed, "granted" if allowed else "not granted")

    def folders(self, dataset: str) -> list[Path]:
        path = self.folder / "sets" / dataset
        return [path] if path.is_dir() else []

    def note_run(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        if type(body.get("steps")) is not int:
            raise Refused("steps must be a number")
        return {"steps": body["steps"]}

    def tell(self, event: str, fields: Mapping[str, Any]) -> None:
        if event != "step":
            raise Refused("no such event")
        self.told.append((event, dict(fields)))

    @property
    def rules(self) -> Rules:
        return Rules(self.decide, self.folders, {"run": self.note_run}, self.tell)

    def shards(self, name: str) -> list[str]:
        return list(open_folder(self.folder / "sets" / name).shards)


@contextmanager
def serving(site: Site, broker: type[Broker] = Broker) -> Iterator[Client]:
    Path(site.socket).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(site.socket)
    listener.listen(64)
    with Serving(listener, broker(site.rules, site.keyring, site.ledger)):
        yield Client(Path(site.socket), timeout_s=60)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def kinds(site: Site) -> list[str]:
    return [e.kind for e in site.ledger.entries()]


def test_ask_then_keys(site: Site) -> None:
    folder = open_folder(site.folder / "sets" / GRANTED)
    with serving(site) as client:
        with pytest.raises(Refused, match="not allowed"):
            folder.read("rows.bin", client)
        client.require(GRANTED, "anchor")
        assert folder.read("rows.bin", client) + folder.read("blobs.bin", client) == site.plain[GRANTED]
        assert client.ask(DENIED, "anchor") == Decision(False, "not granted")
        with pytest.raises(Refused, match="not granted"):
            client.require(GRANTED, "export")
        for name, shard in ((DENIED, site.shards(DENIED)[0]), (GRANTED, site.shards(DENIED)[0])):
            with pytest.raises(Refused):
                client.key(name, shard)
        client.ask(GRANTED, "anchor")
    assert kinds(site) == ["ask", "refusal", "refusal"]
    assert all(e.body["from"] == "jail" for e in site.ledger.entries())


def test_a_grant_ends_with_its_contract_and_its_key(site: Site) -> None:
    shard = site.shards(GRANTED)[0]
    with serving(site) as client:
        client.require(GRANTED, "anchor")
        assert len(client.key(GRANTED, shard)) == 32
        site.granted.clear()
        with pytest.raises(Refused, match="not any more"):
            client.key(GRANTED, shard)
        site.granted.add((GRANTED, "anchor"))
        assert len(client.key(GRANTED, shard)) == 32
        # another process erases: this one must not go on with what it read before
        erase(Keyring(site.folder / "keys"), OWNER, GRANTED, site.ledger.append)
        with pytest.raises(Refused, match="erased on purpose"):
            client.key(GRANTED, shard)


def test_notes_and_tells_are_what_the_keeper_makes_of_them(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(site) as client:
        assert client.note("run", {"steps": 3, "text": "plaintext"}) == 0
        for kind, body in (("run", {"steps": "x"}), ("erase", {}), ("contract", {})):
            with pytest.raises(Refused):
                client.note(kind, body)
        client.tell("step", {"loss": 0.5})
        with pytest.raises(Refused):
            client.tell("secret", {})
        with monkeypatch.context() as m:
            m.setattr("hagane.seal.broker.NOTES", 1)
            with pytest.raises(Refused, match="too many"):
                client.note("run", {"steps": 5})
        with pytest.raises(StoreError, match="more than"):
            client.note("run", {"steps": "x" * LIMIT})
        assert client.note("run", {"steps": 4}) == 1  # what could not be said has broken nothing
    assert [e.body for e in site.ledger.entries()] == [{"steps": 3, "from": "jail"}, {"steps": 4, "from": "jail"}]
    assert site.told == [("step", {"loss": 0.5})]


def test_refusals_cannot_fill_the_disk_nor_carry_words(site: Site) -> None:
    with serving(site) as client:
        for i in range(40):
            client.ask(f"smuggled-{i}", "anchor")
            client.ask(GRANTED, f"smuggled-{i}")
    assert len(kinds(site)) == 2 and b"smuggled" not in site.ledger.path.read_bytes()
    broker = Broker(site.rules, site.keyring, site.ledger)
    for i in range(3 * REFUSALS):
        broker._write_refusal(f"d{i}", "anchor", "no")
    entries = list(site.ledger.entries())
    assert len(entries) == 2 + REFUSALS and "more" in entries[-1].body


def test_many_threads_and_processes(site: Site) -> None:
    with serving(site) as client:
        client.require(GRANTED, "anchor")
        shards = site.shards(GRANTED)
        with ThreadPoolExecutor(8) as pool:
            out = list(pool.map(lambda _: [client.key(GRANTED, s) for s in shards], range(8)))
        with multiprocessing.get_context("fork").Pool(2) as forked:
            out += forked.starmap(keys_of, [(pickle.dumps(client), GRANTED, shards)] * 4)
        assert len(out) == 12 and all(keys == out[0] for keys in out)


INHERITED: list[Client] = []


def keys_of(client: bytes, dataset: str, shards: list[str]) -> list[bytes]:
    return [pickle.loads(client).key(dataset, s) for s in shards]


def inherited_keys(dataset: str, shards: list[str]) -> list[bytes]:
    return [INHERITED[0].key(dataset, s) for s in shards]


def test_a_fork_has_a_connection_of_its_own(site: Site) -> None:
    with serving(site) as client:
        client.require(GRANTED, "anchor")
        INHERITED[:] = [client]
        shards = site.shards(GRANTED)
        try:
            with multiprocessing.get_context("fork").Pool(1) as pool:
                answers = [pool.apply_async(inherited_keys, (GRANTED, shards)) for _ in range(5)]
                mine = [client.key(GRANTED, s) for s in shards]
                assert all(a.get(60) == mine for a in answers)
        finally:
            INHERITED.clear()


def test_a_broker_that_is_gone_is_told_and_not_dialled_again(site: Site) -> None:
    with pytest.raises(StoreError, match="does not answer"):
        Client(Path(site.socket)).ask(GRANTED, "anchor")
    with serving(site) as client:
        client.ask(GRANTED, "anchor")
    with pytest.raises(StoreError, match="does not answer"):
        client.ask(GRANTED, "anchor")
    with serving(site):
        with pytest.raises(StoreError, match="ended before"):
            client.ask(GRANTED, "anchor")
        assert Client(Path(site.socket)).ask(GRANTED, "anchor").allowed


def test_connections_are_bounded(site: Site) -> None:
    with serving(site):
        links = [socket.socket(socket.AF_UNIX) for _ in range(CONNECTIONS + 20)]
        for link in links:
            link.connect(site.socket)
            link.settimeout(60)
        assert all(link.recv(1) == b"" for link in links[CONNECTIONS:])
        links[0].close()
        for link in links:
            link.close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b'{"do":"ask","dataset":"a"}',
        b'{"do":"ask","dataset":"a","purpose":"b","more":1}',
        b'{"do":"ask","dataset":"a","dataset":"b","purpose":"c"}',
        b'{"do":"ask","do":"key","dataset":"a","purpose":"c"}',
        b'{"do": "ask","dataset":"a","purpose":"c"}',
        b'{"dataset":"a","purpose":"c","do":"ask"}',
        b'{"do":"ask","dataset":1,"purpose":"c"}',
        b'{"do":"ask","dataset":"\\u0061","purpose":"c"}',
        b'{"do":"ask","dataset":"a","purpose":"c"} ',
        b'{"do":"ask","dataset":"\xff","purpose":"c"}',
        b'{"do":"grant","dataset":"a","purpose":"c"}',
        b'{"do":"note","kind":"a","body":[]}',
        b'{"do":"note","kind":"a","body":{"a":1,"a":2}}',
        b'{"do":"note","kind":"a","body":' + b'{"a":' * 9 + b"1" + b"}" * 9 + b"}",
        b'{"do":"note","kind":"a","body":' + b"[" * 100_000,
        b'{"do":"note","kind":"a","body":{"n":1e400}}',
        b'{"do":"note","kind":"a","body":{"n":NaN}}',
    ],
)
def test_what_is_no_request(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_request(data)


def test_what_is_a_request() -> None:
    deep: dict[str, Any] = {"x": 1.5}
    for _ in range(DEPTH - 1):
        deep = {"a": deep}
    for request in (Ask("a", "b"), Note("run", deep), Tell("step", {"loss": [1, 2.25, None, True, "é"]})):
        assert decode_request(encode(request)) == request


def test_only_a_unix_socket(site: Site) -> None:
    with socket.socket(socket.AF_INET) as s, pytest.raises(ConfigError, match="unix"):
        serve(s, site.rules, site.keyring, site.ledger)


def grams(data: bytes) -> set[bytes]:
    return {data[i : i + 8] for i in range(len(data) - 7)}


def attack(site: Site, broker: type[Broker], frames: int = 1500) -> tuple[int, int, int]:
    """Keys that hostile code got, and 8-byte runs of the granted and of the ungranted plaintext that it can read."""
    folders = [str(site.folder / "sets" / n) for n in (GRANTED, DENIED)]
    job = {"socket": site.socket, "granted": GRANTED, "denied": DENIED, "folders": folders, "frames": frames, "seed": 5}
    with serving(site, broker) as client:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("hostile.py"))],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            check=True,
        )
        assert not client.ask(DENIED, "anchor").allowed  # the broker lives, and has not changed its mind
    site.ledger.verify()
    assert b"SMUGGLED" not in site.ledger.path.read_bytes()
    seen: set[bytes] = set()
    result = json.loads(done.stdout)
    for text in result["got"]:
        seen |= grams(base64.b64decode(text))
    found = [len(grams(site.plain[n][:200]) & seen) + len(grams(site.plain[n][200:]) & seen) for n in (GRANTED, DENIED)]
    return result["keys"], found[0], found[1]


class Forgets(Broker):
    """The planted fault: a broker that does not look whether the data set was asked for."""

    def _granted(self, dataset: str) -> bool:
        return True


class AnyFolder(Broker):
    """Another: it looks for the shard in all folders, whatever the data set."""

    def _key(self, dataset: str, shard: str) -> bytes:
        if not self._granted(dataset):
            raise Refused("no")
        for name in (GRANTED, DENIED):
            keys = self._keys(self.rules.folders(name)[0])
            if shard in keys.folder.shards:
                return keys.key(name, shard)
        raise Refused("no")


WHOLE = 10 * (40 - 7)
"""8-byte runs of a data set that show when all ten records were opened."""


def test_hostile_code_gets_what_is_granted_and_nothing_else(site: Site) -> None:
    keys, granted, denied = attack(site, Broker)
    assert denied == 0
    assert keys == 2 and granted >= WHOLE  # the same search does open what was granted
    assert len(kinds(site)) < 150
    erase(site.keyring, OWNER, GRANTED, site.ledger.append)
    assert attack(site, Broker, 200) == (0, 0, 0)


@pytest.mark.parametrize("fault", [Forgets, AnyFolder])
def test_the_attack_sees_a_planted_fault(site: Site, fault: type[Broker]) -> None:
    _, _, denied = attack(site, fault, 0)
    assert denied >= WHOLE


@pytest.mark.slow
def test_a_hundred_thousand_frames(site: Site) -> None:
    assert attack(site, Broker, 100_000)[::2] == (2, 0)


def test_a_list_that_somebody_changed_gives_no_keys(site: Site) -> None:
    with serving(site) as client:
        client.require(GRANTED, "anchor")
        (site.folder / "sets" / GRANTED / "sealed.json").write_bytes(
            (site.folder / "sets" / DENIED / "sealed.json").read_bytes()
        )
        for name in (GRANTED, DENIED):
            for shard in site.shards(DENIED):
                with pytest.raises(HaganeError):
                    client.key(name, shard)
