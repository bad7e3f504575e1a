"""The officer's page: what it says, in both languages, with nothing in it that a ledger could smuggle in."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hagane.cli import main
from hagane.cli.site import ledger_of
from hagane.console.officer_words import BEYOND
from hagane.seal.key_life import ALWAYS_OUT_OF_REACH
from tests.audit_fixture import Books, books, read, sha
from tests.test_report_browser import Tab, browser, complaints, shoot, tab

__all__ = ["browser", "tab"]
EVIL = '<script>alert(1)</script>"><img src=http://127.0.0.1:9/x>'


def fill(made: Books) -> None:
    """Something in every section, an attack among it."""
    ledger = ledger_of(made.home)
    ledger.append("refusal", {"dataset": "road-demo", "owner": "member-cars", "purpose": "export", "reason": EVIL})
    ledger.append("refusal", {"dataset": EVIL, "purpose": EVIL, "reason": "no"})
    ledger.append("left", {"dataset": "arm-demo", "file": "arm.html", "sha256": sha("page"), "purpose": "view"})
    lineage = {"checkpoint": made.first, "datasets": {"road-demo": sha("road-demo")}}
    about = {"what": "weights", "site": "lab", "out": "release-1", "statement_sha256": sha("statement")}
    ledger.append("export", {**about, "allowed": True, "lineage": lineage})
    ledger.append("export", {**about, "out": "release-2", "allowed": False, "reason": "a stray tensor"})
    ledger.append("erase", {"dataset": "road-demo", "owner": "member-cars", "generations": [1], "folders": []})
    ledger.append("withdrawal", {"owner": "member-robots", "datasets": ["arm-demo"], "withdrawal": "D"})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = books(tmp_path_factory.mktemp("officer") / "site")
    fill(made)
    out = made.home / "officer.html"
    assert make(made, out) == 0
    return out


def make(made: Books, out: Path) -> int:
    key = str(made.home / "keys" / "host.pub")
    return main(["audit", "report", "--officer", "--home", str(made.home), "--html", str(out), "--site-key", key])


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags, self.languages, self.words = list[str](), list[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.languages += [v or "" for k, v in attrs if k == "class" and v in ("en", "t-ja")]
        assert not any(
            k in ("src", "onerror") or (k == "href" and not str(v).startswith(("#", "data:"))) for k, v in attrs
        )

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_everything_is_there_escaped_and_in_both_languages(page: Path) -> None:
    text, tags = page.read_text("utf-8"), Tags()
    tags.feed(text)
    assert tags.tags.count("script") == 1 and "img" not in tags.tags
    assert tags.languages.count("en") == tags.languages.count("t-ja") > 80
    said = " ".join(tags.words)
    for words in (
        "Data rights at lab", "lab におけるデータの権利", "member-cars", "release-1", "refused, nothing left",
        "Key destroyed on", "鍵を破棄", "withdrawn by its owner", "所有者が撤回", EVIL,
        "(by starting from another model)",
        "entries are pending", "連署待ち", "taken on trust", sha("page")[:10],
    ):  # fmt: skip
        assert words in said, words
    assert "http:" not in text.replace("&lt;img src=http:", "")


def test_every_sentence_has_its_own_translation(page: Path) -> None:
    found = re.findall(
        r'<span class="en" lang="en">(.*?)</span><span class="t-ja" lang="ja">(.*?)</span>', page.read_text()
    )
    japanese = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")
    assert [en for en, ja in found if not japanese.search(ja) and "alert" not in en] == []
    assert [en for en, ja in found if japanese.search(en)] == []
    assert tuple(b.en for b in BEYOND) == ALWAYS_OUT_OF_REACH


def test_a_broken_chain_is_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = books(tmp_path / "site")
    assert make(made, tmp_path / "a.html") == 0
    assert "said bad" not in (tmp_path / "a.html").read_text()
    read(made, "road-demo", "second")
    assert make(made, tmp_path / "b.html") == 0
    text = (tmp_path / "b.html").read_text()
    assert "said bad" in text and "its record does not name it" in text
    assert "PROBLEM" in capsys.readouterr().out


def test_bad_input_leaves_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = books(tmp_path / "site")
    path = made.home / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    for args in (["--officer", "--home", str(made.home)], ["--home", str(made.home)], ["--officer", "--home", "none"]):
        assert main(["audit", "report", *args, "--html", str(tmp_path / "x.html")]) == 1
    assert not (tmp_path / "x.html").exists() and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("width", [1280, 480])
@pytest.mark.parametrize("language", ["ja", "en"])
def test_in_a_browser(tab: Tab, page: Path, width: int, language: str, tmp_path: Path) -> None:
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    tab.call("Page.navigate", url=f"{page.as_uri()}#{language}")
    tab.wait("document.readyState === 'complete' && !!document.querySelector('.sets')")
    assert [c for c in complaints(tab, page) if "#" not in c] == []
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value("document.documentElement.lang") == language
    hidden = {"ja": "en", "en": "t-ja"}[language]
    assert tab.value(f"document.querySelector('h1 .{hidden}').offsetWidth") == 0
    other = "en" if language == "ja" else "ja"
    tab.value(f"document.getElementById('lang-{other}').click()")
    assert tab.value("document.documentElement.lang") == other
    shoot(tab, tmp_path / "page.png", width)
