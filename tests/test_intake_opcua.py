"""OPC UA history against a real server on 127.0.0.1: pages, qualities, latency, units, and how it fails."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.cli import main
from hagane.intake import opcua_client, read_logs
from hagane.intake.detect import format_of
from hagane.intake.opcua_values import Pages
from hagane.terms import Channel, ConfigError, Embodiment, Episode, LogError, dump_toml

pytest.importorskip("asyncua")

from asyncua import Server, ua
from asyncua.crypto.cert_gen import setup_self_signed_certificate
from asyncua.server.history import HistoryDict
from asyncua.server.history_sql import HistorySQLite
from asyncua.server.user_managers import User, UserManager, UserRole
from cryptography.x509.oid import ExtendedKeyUsageOID

URI = "urn:member-steel:line-3"
START = datetime(2026, 1, 5, 0, 0, 0, 250_000, tzinfo=UTC)
STEP = timedelta(seconds=1)
N = 250
LINE = Embodiment(
    "furnace",
    "plant",
    "member-steel",
    1.0,
    4,
    observe=(
        Channel("temperature", unit=("Cel",), role="pv", source=("ns=2;s=FURNACE.T1",)),
        Channel("pressure", unit=("1",), role="pv", rate_hz=0.5, source=("2:Furnace/2:P1",)),
    ),
    act=(Channel("fuel", role="mv", source=("ns=2;s=FURNACE.FUEL",)),),
)
BAD, UNCERTAIN = ua.StatusCodes.BadSensorFailure, ua.StatusCodes.UncertainLastUsableValue


class Users(UserManager):
    """One user with one password; nobody else."""

    def get_user(self, iserver: Any, username: Any = None, password: Any = None, certificate: Any = None) -> Any:
        return User(role=UserRole.Admin) if (username, password) == ("member", "secret") else None


@dataclass
class Plant:
    """A real server in a thread of its own, with a history of three nodes, and one node without."""

    storage: Any = field(default_factory=HistoryDict)
    users: UserManager | None = None
    numbered: bool = False
    rows: int = N
    port: int = 0
    certificates: Path | None = None
    loop: Any = None
    server: Any = None

    @property
    def endpoint(self) -> str:
        return f"opc.tcp://127.0.0.1:{self.port}"

    def __enter__(self) -> Plant:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        ready = threading.Event()
        failed: list[BaseException] = []

        def run() -> None:
            self.loop = asyncio.new_event_loop()
            try:
                self.loop.run_until_complete(self._start())
            except BaseException as e:
                failed.append(e)
            ready.set()
            if not failed:
                self.loop.run_forever()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        assert ready.wait(30) and not failed, failed
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.server.stop(), self.loop).result(20)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(20)

    async def _start(self) -> None:
        self.server = Server(user_manager=self.users) if self.users else Server()
        self.server.iserver.history_manager.set_storage(self.storage)
        await self.server.init()
        self.server.set_endpoint(self.endpoint)
        if self.certificates:
            await self._secure(self.certificates)
        index = await self.server.register_namespace(URI)
        furnace = await self.server.nodes.objects.add_object(f"ns={index};s=FURNACE", f"{index}:Furnace")
        nodes = {}
        for k, browse in enumerate(("T1", "P1", "Fuel", "Note", "Text")):
            name = browse.upper()
            words = f"i={1001 + k}" if self.numbered else f"s=FURNACE.{name}"
            nodes[name] = await furnace.add_variable(f"ns={index};{words}", f"{index}:{browse}", 0.0)
        about = ua.EUInformation(DisplayName=ua.LocalizedText("℃"))
        await nodes["T1"].add_property(ua.NodeId(0, 0), ua.QualifiedName("EngineeringUnits", 0), about)
        # the storage is filled as the server's own subscription would fill it
        for name in ("T1", "P1", "FUEL", "TEXT"):
            await self.storage.new_historized_node(nodes[name].nodeid, None)
            await nodes[name].set_attr_bit(ua.AttributeIds.AccessLevel, ua.AccessLevel.HistoryRead)
        for k in range(self.rows):
            code = BAD if k in (40, 41) else UNCERTAIN if k == 90 else 0
            await self._save(nodes["T1"], 1200.0 + 0.5 * k, k, timedelta(milliseconds=120), code)
            if k % 2 == 0:
                await self._save(nodes["P1"], 3.0 + 0.01 * k, k, timedelta(0))
            await self._save(nodes["FUEL"], float(k % 7), k, timedelta(0))
        await self._save(nodes["TEXT"], "RUN", 0, timedelta(0))
        await self.server.start()

    async def _save(self, node: Any, value: Any, k: int, late: timedelta, code: int = 0) -> None:
        at = START + k * STEP
        reading = ua.DataValue(
            ua.Variant(value), StatusCode=ua.StatusCode(code), SourceTimestamp=at, ServerTimestamp=at + late
        )
        await self.storage.save_node_value(node.nodeid, reading)

    async def _secure(self, folder: Path) -> None:
        for name, uri in (
            ("server", "urn:freeopcua:python:server"),
            ("client", "urn:example.org:FreeOpcUa:opcua-asyncio"),
        ):
            usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            names = {"countryName": "JP", "organizationName": "member-steel"}
            key, cert = folder / f"{name}.pem", folder / f"{name}.der"
            await setup_self_signed_certificate(key, cert, uri, "localhost", usage, names)
        await self.server.set_application_uri("urn:freeopcua:python:server")
        await self.server.load_certificate(str(folder / "server.der"))
        await self.server.load_private_key(str(folder / "server.pem"))
        self.server.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt])


@pytest.fixture(scope="module")
def plant() -> Iterator[Plant]:
    with Plant(HistoryDict(max_history_data_response_size=60)) as plant:
        yield plant


def history(folder: Path, endpoint: str, **more: object) -> Path:
    """A file that names a server."""
    table = {"endpoint": endpoint, "start": "2026-01-05T09:00:00+09:00", "end": "2026-01-05T00:10:00Z", **more}
    lines = [f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in table.items()]
    path = folder / "history.toml"
    path.write_text("# the furnace, one shift\n[opcua]\n" + "\n".join(lines) + "\n")
    return path


def one(path: Path, embodiment: Embodiment = LINE, **options: object) -> Episode:
    (episode,) = read_logs(path, embodiment, **options)
    return episode


def check(episode: Episode, rows: int = N) -> None:
    """Each stream as the server has it: native stamps, values, validity."""
    temperature, pressure, fuel = (episode.streams[n] for n in ("temperature", "pressure", "fuel"))
    assert temperature.times_ns.tolist() == [k * 10**9 for k in range(rows)]
    assert temperature.clock_offset_ns == -round(START.timestamp() * 1000) * 10**6
    assert temperature.values[:, 0].tolist() == [1200.0 + 0.5 * k for k in range(rows)]
    assert np.flatnonzero(~temperature.valid).tolist() == [
        k for k in (40, 41, 90) if k < rows
    ] and temperature.unit == ("°C",)
    assert pressure.times_ns.tolist() == [k * 10**9 for k in range(0, rows, 2)] and pressure.valid.all()
    assert fuel.values[:, 0].tolist() == [float(k % 7) for k in range(rows)]


@pytest.mark.parametrize("page", [0, 1000, 50, 7])
def test_a_history_comes_in_whole_whatever_the_page(plant: Plant, tmp_path: Path, page: int) -> None:
    """0 and 1000: the server cuts at 60 and gives continuation points; 50 and 7: it cuts and gives none."""
    path = history(tmp_path, plant.endpoint, page=page)
    assert format_of(path) == "opcua_history"
    episode = one(path, task="heat the slabs")
    check(episode)
    assert (episode.id, episode.task) == ("history", "heat the slabs")
    said = [str(f) for f in episode.findings if f.kind in ("bad-quality", "note")]
    assert len(said) == 2, said
    assert "ns=2;s=FURNACE.T1: the server stamped readings 0.120 s after their source" in said[0]
    assert "3 of 250 readings are not good: 1 uncertain, 2 bad" in said[1]
    assert episode.digest == one(history(tmp_path, plant.endpoint, page=3)).digest


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.integers(0, 1), min_size=1, max_size=40), size=st.integers(3, 9), points=st.booleans())
def test_pages_that_overlap_in_a_stamp_join_without_loss(steps: list[int], size: int, points: bool) -> None:
    """Readings that share stamps, in pages that begin where the last one ended (with points: at the first one left)."""
    kept = [
        ua.DataValue(ua.Variant(float(k)), SourceTimestamp=START + int(s) * STEP)
        for k, s in enumerate(np.cumsum(steps))
    ]
    pages, at = Pages("here"), 0
    most = max(sum(v.SourceTimestamp == w.SourceTimestamp for w in kept) for v in kept)
    while at < len(kept):
        first = at
        while first and kept[first - 1].SourceTimestamp == kept[at if points else at - 1].SourceTimestamp:
            first -= 1
        page = kept[first : first + max(size, most + 1)]
        assert pages.add(page) or not at
        at = first + len(page)
    found = pages.readings("")
    assert found.values.tolist() == [float(k) for k in range(len(kept))] and pages.count == len(kept)


def test_names_of_nodes_by_namespace_and_by_path(plant: Plant, tmp_path: Path) -> None:
    ways = (
        (f"nsu={URI};s=FURNACE.T1", "Objects/2:Furnace/2:P1", f"nsu={URI};s=FURNACE.FUEL"),
        ("s=FURNACE.T1", "Furnace/P1", "Furnace/Fuel"),
    )
    for (first, second, third), space in zip(ways, ("", URI), strict=True):
        observe = (replace(LINE.observe[0], source=(first,)), replace(LINE.observe[1], source=(second,)))
        machine = replace(LINE, observe=observe, act=(replace(LINE.act[0], source=(third,)),))
        check(one(history(tmp_path, plant.endpoint, namespace=space), machine))


def test_history_in_sqlite(tmp_path: Path) -> None:
    storage = HistorySQLite(str(tmp_path / "history.db"), max_history_data_response_size=20)
    observe = (replace(LINE.observe[0], source=("ns=2;i=1001",)), replace(LINE.observe[1], source=("ns=2;i=1002",)))
    machine = replace(LINE, observe=observe, act=(replace(LINE.act[0], source=("ns=2;i=1003",)),))
    with Plant(storage, numbered=True, rows=50) as plant:  # asyncua 2.1 cannot name a table after a node id in words
        check(one(history(tmp_path, plant.endpoint, page=0), machine), 50)
        check(one(history(tmp_path, plant.endpoint, page=30), machine), 50)


def test_the_verb_looks_and_a_folder_does_not_reach_out(
    plant: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = history(tmp_path, plant.endpoint)
    machine = tmp_path / "machine.toml"
    machine.write_text(dump_toml(LINE))
    assert main(["intake", str(path), "--embodiment", str(machine), "--dry-run"]) == 0
    assert "1 episodes, 249.0 s" in capsys.readouterr().out
    with pytest.raises(LogError, match="the folder holds no log"):
        read_logs(tmp_path, LINE)


def with_source(source: str) -> Embodiment:
    return replace(LINE, observe=(replace(LINE.observe[0], source=(source,)),))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("ns=2;s=FURNACE.T9", r"no node 'ns=2;s=FURNACE.T9'(?s:.*)namespaces are 0 http"),
        ("ns=2;i=", "no node id|no node"),
        ("2:Furnace/2:T9", r"no node '2:Furnace/2:T9'(?s:.*)browse path"),
        ("nsu=urn:other;s=T1", r"no namespace 'urn:other'"),
        ("ns=2;s=FURNACE.NOTE", r"the node keeps no history"),
        ("ns=2;s=FURNACE.TEXT", r"the node holds str, not numbers"),
    ],
)
def test_nodes_that_will_not_do(plant: Plant, tmp_path: Path, source: str, words: str) -> None:
    with pytest.raises((LogError, ConfigError), match=words):
        one(history(tmp_path, plant.endpoint), with_source(source))


def test_a_command_that_the_server_lacks_is_said(plant: Plant, tmp_path: Path) -> None:
    machine = replace(LINE, act=(replace(LINE.act[0], source=("ns=2;s=GONE",)),))
    episode = one(history(tmp_path, plant.endpoint), machine)
    assert ("unmapped", "fuel") in [(f.kind, f.stream) for f in episode.findings]
    assert "fuel" not in episode.streams


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"start": "2026-01-06T00:00:00Z", "end": "2026-01-07T00:00:00Z"}, "no reading from"),
        ({"start": "2026-01-06T00:00:00Z"}, "end is not after start"),
        ({"start": "2026-01-05T09:00:00"}, "start has no zone"),
        ({"start": "noon"}, "start is no time: 'noon'"),
        ({"endpoint": "http://127.0.0.1"}, "no endpoint"),
        ({"endpoint": "opc.tcp://a:b@127.0.0.1:4840"}, "carries a user"),
        ({"user_env": "HAGANE_TEST_NOBODY"}, "HAGANE_TEST_NOBODY is not set"),
        ({"pages": 3}, r"unknown key `pages`(?s:.*)did you mean `page`"),
        ({"security": "Basic256Sha256,Sign,a.der,b.pem"}, "no such file"),
    ],
)
def test_files_that_will_not_do(plant: Plant, tmp_path: Path, more: dict[str, object], words: str) -> None:
    with pytest.raises((LogError, ConfigError), match=words):
        one(history(tmp_path, plant.endpoint, **more) if "endpoint" not in more else history(tmp_path, **more))


def test_a_password_never_crosses_a_network_in_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINE_USER", "member")
    monkeypatch.setattr(opcua_client, "fetch", None)
    with pytest.raises(ConfigError, match="in clear"):
        one(history(tmp_path, "opc.tcp://192.0.2.1:4840", user_env="LINE_USER"))


def test_nobody_there_and_one_who_does_not_answer(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with pytest.raises(LogError, match=r"cannot open a session(?s:.*)check `endpoint`"):
        one(history(tmp_path, f"opc.tcp://127.0.0.1:{port}"))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        with pytest.raises(LogError, match="cannot open a session: no answer in time"):
            one(history(tmp_path, f"opc.tcp://127.0.0.1:{s.getsockname()[1]}", timeout_s=0.3))


class Lossy(HistoryDict):
    """A storage in which something happens at the third page."""

    def __init__(self, happens: Callable[[], None]) -> None:
        super().__init__(60)
        self.happens, self.pages = happens, 0

    async def read_node_history(self, *args: Any) -> Any:
        self.pages += 1
        if self.pages >= 3:
            self.happens()
        return await super().read_node_history(*args)


def test_a_connection_lost_on_the_way_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def cut() -> None:
        for protocol in list(plant.server.bserver.clients):
            protocol.transport.abort()

    plant = Plant(Lossy(cut))
    with plant, pytest.raises(LogError, match=r"the connection was lost at 'ns=2;s=FURNACE.T1', after 0 whole tags"):
        one(history(tmp_path, plant.endpoint, timeout_s=3.0))
    assert "Traceback" not in capsys.readouterr().err


def test_a_server_that_repeats_a_page_is_stopped(tmp_path: Path) -> None:
    class Endless(HistoryDict):
        async def read_node_history(self, *args: Any) -> Any:
            values, _ = await super().read_node_history(*args)
            return values[:5], START

    with Plant(Endless()) as plant, pytest.raises(LogError, match="repeats a page without end"):
        one(history(tmp_path, plant.endpoint))


def test_a_history_too_long_is_refused(plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opcua_client, "MOST_READINGS", 100)
    with pytest.raises(LogError, match="more than 100 readings"):
        one(history(tmp_path, plant.endpoint))


def test_a_user_over_an_encrypted_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINE_USER", "member")
    monkeypatch.setenv("LINE_PASSWORD", "secret")
    with Plant(users=Users(), certificates=tmp_path) as plant:
        more = {"user_env": "LINE_USER", "password_env": "LINE_PASSWORD"}
        safe = {**more, "security": "Basic256Sha256,SignAndEncrypt,client.der,client.pem"}
        check(one(history(tmp_path, plant.endpoint, **safe)))
        with pytest.raises(LogError, match="cannot open a session"):
            one(history(tmp_path, plant.endpoint, **more))  # the server takes nobody without encryption
        monkeypatch.setenv("LINE_PASSWORD", "wrong")
        with pytest.raises(LogError, match=r"BadUserAccessDenied(?s:.*)check the user and password"):
            one(history(tmp_path, plant.endpoint, **safe))


def test_a_stamp_of_1601_is_none() -> None:
    never, later = datetime(1601, 1, 1, tzinfo=UTC), START + STEP
    pages = Pages("here")
    pages.add([ua.DataValue(ua.Variant(1.0), SourceTimestamp=never, ServerTimestamp=START),
               ua.DataValue(ua.Variant(2.0), SourceTimestamp=later, ServerTimestamp=never)])  # fmt: skip
    found = pages.readings("")
    assert found.from_source.tolist() == [False, True] and (np.diff(found.source_ns) == 10**9).all()
    assert found.server_ns.tolist() == found.source_ns.tolist()
