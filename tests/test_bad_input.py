"""The list of bad input: where each item is tested, and the verbs' own answer to the commonest of them.

Each answer is one message (what, where, next), exit code 1, no traceback, nothing half-written.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from hagane.cli import main
from hagane.demo.members import demonstrations, write_format
from hagane.engine import Engine, StepConfig, save_checkpoint
from hagane.seal import generate_key, sign_contract
from hagane.seal.keys import TrustStore, load_private, public_of
from hagane.terms import RunRecord
from hagane.worlds import make
from tests.model_fixture import make_model

WORLDS = Path(importlib.import_module("hagane.worlds").__file__ or "").parent
TESTED = {
    "a truncated log: CAN": "test_intake_can.test_a_log_cut_in_a_line_is_refused_or_gives_its_whole_drives",
    "a truncated log: CSV": "test_intake_historian.test_a_cut_file_is_refused_or_gives_its_whole_rows",
    "a truncated log: MCAP": "test_intake_mcap.test_a_recording_that_was_cut_still_says_whose_it_is",
    "a truncated log: LeRobot": "test_lerobot.test_damaged_sets_get_one_message",
    "a DBC that lacks an id": "test_intake_can.test_messages_that_the_dbc_lacks_are_named_with_the_nearest",
    "two units in a column": "test_intake_historian.test_two_units_in_a_column_name_file_line_and_column",
    "an embodiment with an unknown key": "test_bad_input.test_an_embodiment_with_an_unknown_key",
    "an expired contract": "test_intake_detect.test_an_expired_contract_is_refused",
    "an unsigned contract": "test_bad_input.test_contracts_that_do_not_hold_stop_intake",
    "a contract for another country": "test_bad_input.test_contracts_that_do_not_hold_stop_intake",
    "a checkpoint with a flipped byte": "test_bad_input.test_a_checkpoint_with_a_flipped_byte",
    "a disk that fills: catalog": "test_catalog_crash.test_a_disk_without_room_is_one_message_and_nothing_is_lost",
    "a disk that fills: training": "test_train.test_a_full_disk_is_one_message_and_the_run_goes_on_later",
    "port in use": "test_serve.test_a_port_in_use_is_one_clear_message",
    "a client that sends nonsense": "test_serve.test_nonsense_gets_a_text_and_1011_and_others_go_on",
}


@pytest.mark.parametrize("item", TESTED)
def test_every_item_of_the_list_is_tested(item: str) -> None:
    module, _, function = TESTED[item].partition(".")
    if module in ("test_intake_can", "test_intake_mcap"):
        pytest.importorskip("cantools" if module == "test_intake_can" else "mcap")
    assert callable(getattr(importlib.import_module(f"tests.{module}"), function))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site in Japan, a member with a key, and its historian log."""
    home = tmp_path_factory.mktemp("site")
    (home / "site.toml").write_text('name = "consortium-lab"\ncountry = "JP"\noperator = "consortium"\n')
    (home / "trust").mkdir()
    generate_key(home / "member-steel.pem")
    TrustStore(home / "trust").add("member-steel", public_of(load_private(home / "member-steel.pem")))
    world = make("mill")
    write_format(world.embodiment, demonstrations(world, 2), home / "logs")
    return home


def contract(site: Path, name: str, *, country: str = "JP", sign: bool = True) -> Path:
    path = site / f"{name}.toml"
    path.write_text(
        f'owner = "member-steel"\ndatasets = ["mill-demo"]\nresidency = ["{country}"]\nsites = ["consortium-lab"]\n'
        'purposes = ["anchor"]\nuntil = 2099-12-31\n'
    )
    if sign:
        sign_contract(path, load_private(site / "member-steel.pem"))
    return path


def intake(site: Path, terms: Path, log: Path | None = None, embodiment: Path = WORLDS / "mill.toml") -> int:
    where = ["--embodiment", str(embodiment), "--contract", str(terms), "--name", "mill-demo", "--home", str(site)]
    return main(["intake", str(log or site / "logs" / "historian.csv"), *where])


def one_message(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.count("hagane ") >= 1 and "next:" in said, said
    for word in words:
        assert word in said, said


def stored(site: Path) -> list[str]:
    return [p.name for p in (site / "catalog" / "sets").glob("*")]


@pytest.mark.parametrize(
    ("name", "country", "sign", "words"),
    [("abroad", "DE", True, ("may not be read in 'JP'",)), ("unsigned", "JP", False, ("sign",))],
)
def test_contracts_that_do_not_hold_stop_intake(
    site: Path, capsys: pytest.CaptureFixture[str], name: str, country: str, sign: bool, words: tuple[str, ...]
) -> None:
    assert intake(site, contract(site, name, country=country, sign=sign)) == 1
    one_message(capsys, *words)
    assert stored(site) == []


def test_an_embodiment_with_an_unknown_key(site: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wrong = tmp_path / "mill.toml"
    text = (WORLDS / "mill.toml").read_text()
    wrong.write_text(text.replace("rate_hz =", "rate_khz =", 1))
    line = 1 + text[: text.index("rate_hz =")].count("\n")
    assert intake(site, contract(site, "good"), embodiment=wrong) == 1
    one_message(capsys, f"mill.toml:{line}", "unknown key `rate_khz`", "did you mean `rate_hz`?")
    assert stored(site) == []


def test_a_log_that_is_cut_or_empty_changes_nothing(
    site: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = (site / "logs" / "historian.csv").read_bytes()
    for name, cut in (("empty.csv", b""), ("header.csv", data[:30])):
        (tmp_path / name).write_bytes(cut)
        assert intake(site, contract(site, "good"), tmp_path / name) == 1
        one_message(capsys, name)
    assert stored(site) == []


def test_a_checkpoint_with_a_flipped_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = RunRecord("r", "c", "d", {}, {}, {}, 0, 0)
    save_checkpoint(tmp_path, Engine(make_model(), StepConfig(), 0), record, {})
    path = next((tmp_path / "step-000000").glob("served-member-cars*"))
    data = bytearray(path.read_bytes())
    data[int(np.random.default_rng(0).integers(len(data)))] ^= 4
    path.write_bytes(bytes(data))
    for verb in (["serve", str(path.parent)], ["evaluate", str(path.parent), "--world", "mill"]):
        assert main(verb) == 1
        one_message(capsys, path.name, "sha256")
