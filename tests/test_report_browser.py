"""The report page in a real browser, where there is one: no request, no error, nothing wider than the window."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from hagane.console import make_report
from tests.report_fixture import make_run

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--no-first-run", "--disable-dev-shm-usage", "--remote-debugging-port=0",
)  # fmt: skip


class Tab:
    """One tab of a headless browser, over its debugging protocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.last, self.events = socket, 0, list[dict[str, Any]]()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command, keep events that come meanwhile, return the result."""
        self.last += 1
        self.socket.send(json.dumps({"id": self.last, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=20))
            if message.get("id") == self.last:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def value(self, expression: str) -> Any:
        """Value of an expression in the page (a promise is awaited)."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until the expression is true in the page; fails after 15 s."""
        end = time.monotonic() + 15
        while not self.value(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def of(self, method: str) -> list[dict[str, Any]]:
        """Events of one kind so far."""
        return [e["params"] for e in self.events if e.get("method") == method]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: the page is not loaded in a real browser")
    profile = tmp_path_factory.mktemp("profile")
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 30
        note = profile / "DevToolsActivePort"
        while not (note.exists() and note.read_text().strip()):
            if process.poll() is not None or time.monotonic() > end:
                pytest.skip("chromium does not start on this machine")
            time.sleep(0.05)
        yield int(note.read_text().split()[0])
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def tab(browser: int) -> Iterator[Tab]:
    import urllib.request

    request = urllib.request.Request(f"http://127.0.0.1:{browser}/json/new?about:blank", method="PUT")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=20) as answer:
        url = json.load(answer)["webSocketDebuggerUrl"]
    with connect(url, max_size=None, proxy=None) as socket:
        tab = Tab(socket)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        # the network is off for the page, whatever it tries
        tab.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        yield tab


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_report(make_run(tmp_path_factory.mktemp("browser"), steps=300))


def load(tab: Tab, page: Path, width: int, *, dark: bool = False) -> None:
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    tab.call("Emulation.setEmulatedMedia", features=features)
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    tab.call("Page.navigate", url=page.as_uri())
    tab.wait("document.readyState === 'complete' && !!document.querySelector('.uplot')")


def complaints(tab: Tab, page: Path) -> list[str]:
    """Requests beyond the page itself, exceptions, and errors or warnings on the console."""
    asked = {r["request"]["url"] for r in tab.of("Network.requestWillBeSent")}
    found = [url for url in asked if url != page.as_uri() and not url.startswith("data:")]
    found += [e["exceptionDetails"]["text"] for e in tab.of("Runtime.exceptionThrown")]
    found += [e["entry"]["text"] for e in tab.of("Log.entryAdded") if e["entry"]["level"] in ("error", "warning")]
    return found


def test_the_check_sees_a_planted_request(tab: Tab, page: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted.html"
    planted.write_text(page.read_text().replace("<main>", '<main><img src="http://127.0.0.1:9/x.png">'))
    load(tab, planted, 1440)
    assert complaints(tab, planted)


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (1440, True), (420, False), (420, True)])
def test_no_request_no_error_nothing_too_wide(tab: Tab, page: Path, width: int, dark: bool) -> None:
    load(tab, page, width, dark=dark)
    assert complaints(tab, page) == []
    assert tab.value("document.documentElement.scrollWidth") <= width
    if folder := os.environ.get("HAGANE_SHOTS"):
        shoot(tab, Path(folder) / f"report-{width}-{'dark' if dark else 'light'}.png", width)


def shoot(tab: Tab, path: Path, width: int) -> None:
    """The whole page as a PNG."""
    tall = tab.value("document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": tall, "scale": 1}
    shot = tab.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(shot["data"]))


def test_the_replays_move_and_obey_the_keyboard(tab: Tab, page: Path) -> None:
    load(tab, page, 1440)
    tab.value("document.querySelector('.players').scrollIntoView()")
    tab.wait("+document.querySelector('[data-replay=road] .seek').value > 5 || document.hidden")
    press = (
        "document.querySelector('[data-replay=road] canvas').dispatchEvent(new KeyboardEvent('keydown', {key: '%s'}))"
    )
    tab.value(press % "Home")
    assert tab.value("document.querySelector('[data-replay=road] .seek').value") == "0"
    tab.value(press % "ArrowRight")
    assert tab.value("document.querySelector('[data-replay=road] .seek').value") == "1"
    chosen = "document.querySelector('[data-replay=road] [aria-checked=true]').textContent"
    assert tab.value(chosen) == "ours"
    tab.value(press.replace("canvas", ".who") % "ArrowRight")
    assert tab.value(chosen) != "ours"
    # every painter really paints: many colours, not one
    colours = """(name) => { const c = document.querySelector(`[data-replay=${name}] canvas`);
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, seen = new Set();
        for (let i = 0; i < d.length; i += 4) seen.add((d[i] << 16) + (d[i + 1] << 8) + d[i + 2]);
        return seen.size; }"""
    for name in ("arm", "road", "mill"):
        assert tab.value(f"({colours})({name!r})") > 20, name


def test_an_unknown_kind_and_a_broken_frame_show_numbers(tab: Tab, tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=20)
    for name, kind, frame in (
        ("press", "press", {"force": 3.5}),
        ("road", "road", {"ego": None}),
        ("empty", "arm", None),
    ):
        frames = [] if frame is None else [frame, frame]
        episode = {"case": "c", "who": "ours", "seed": None, "score": None, "frames": frames}
        document = {"embodiment": name, "kind": kind, "rate_hz": 5, "episodes": [episode]}
        (run / "replays" / f"{name}.json").write_text(json.dumps(document))
    load(tab, make_report(run), 1440)
    assert tab.of("Runtime.exceptionThrown") == []
    assert "no episode" in tab.value("document.querySelector('[data-replay=empty] .caption').textContent")
