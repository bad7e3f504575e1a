"""Sites that the root signed, forged, changed or nobody signed; and what a site remembers: replay, clock set back."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime, time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hagane.seal import (
    ROOT,
    Ledger,
    Memory,
    SignedContract,
    Site,
    TrustStore,
    generate_key,
    key_id_of,
    ledger_day,
    load_contract,
    load_site,
    permit,
    public_of,
    request_at,
    root_key,
    sign_contract,
    sign_site,
)
from hagane.terms import ConfigError, ContractError, CorruptError, Decision, dump_toml
from tests.permit_cases import signed_of
from tests.seal_setup import CONTRACT, REQUEST

TODAY = date(2026, 11, 24)
DIGEST = "a" * 64


@pytest.fixture
def root(tmp_path: Path) -> tuple[Ed25519PrivateKey, Path]:
    """The root's key, and the file of its public half in a site's trust folder."""
    key, trust = generate_key(tmp_path / "root.pem"), TrustStore(tmp_path / "trust")
    trust.add(ROOT, public_of(key))
    return key, root_key(trust)


def record(folder: Path, **changes: object) -> Path:
    site = Site("lab", "JP", "consortium", DIGEST, date(2027, 6, 30), 'pkey "0x8001"')
    path = folder / "site.toml"
    path.write_text(dump_toml(replace(site, **changes)), "utf-8")  # type: ignore[arg-type]
    return path


def test_a_signed_site_opens_what_asks_for_a_jail(tmp_path: Path, root: tuple[Ed25519PrivateKey, Path]) -> None:
    key, public = root
    path = record(tmp_path)
    jail = signed_of(replace(CONTRACT, protection="jail"))

    def allowed(site: Site, today: date = TODAY, jailed: bool = True) -> bool:
        asked = ("road-demo", DIGEST, "member-cars", "anchor")
        return permit(jail, request_at(site, None, *asked, jailed=jailed, today=today)).allowed

    assert not load_site(path, public).signed
    sign_site(path, key)
    site = load_site(path, public)
    assert site.signed and site.fabric == 'pkey "0x8001"' and allowed(site)
    assert not allowed(site, jailed=False)
    assert not replace(site, country="DE").signed, "a changed copy is not signed"
    for nobody in (None, tmp_path / "none.pub"):
        assert not load_site(path, nobody).signed and not allowed(load_site(path, nobody))
    site = load_site(record(tmp_path / "trust", until=date(2026, 11, 23)))
    path = record(tmp_path, until=date(2026, 11, 23))
    sign_site(path, key)
    assert load_site(path, public).signed and not allowed(load_site(path, public)), "the record ran out"


def test_no_file_and_no_caller_can_claim_to_be_signed(tmp_path: Path) -> None:
    path = record(tmp_path)
    path.write_text(path.read_text() + "signed = true\n")
    with pytest.raises(ConfigError, match="unknown key `signed`"):
        load_site(path)
    with pytest.raises(TypeError):
        Site("lab", "JP", "consortium", signed=True)  # type: ignore[call-arg]


def test_a_bad_signature_of_a_site_is_an_error_and_never_none(
    tmp_path: Path, root: tuple[Ed25519PrivateKey, Path]
) -> None:
    key, public = root
    path = record(tmp_path)
    signature = sign_site(path, key)
    good = signature.read_bytes()
    for end in range(len(good) - 1):  # the last byte is the line's end
        signature.write_bytes(good[:end])
        with pytest.raises(ContractError):
            load_site(path, public)
    for at in range(0, len(good), 7):
        signature.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(ContractError):
            load_site(path, public)
    sign_site(path, generate_key(tmp_path / "other.pem"))
    with pytest.raises(ContractError, match="another key than that of the consortium's root"):
        load_site(path, public)
    forged = json.loads(signature.read_bytes())
    forged["signatures"][0]["keyid"] = key_id_of(public_of(key))
    signature.write_text(json.dumps(forged))
    with pytest.raises(ContractError, match="forged or damaged"):
        load_site(path, public)
    signature.write_bytes(good)
    path.write_text(path.read_text().replace("JP", "DE"))
    for known in (public, None):
        with pytest.raises(ContractError, match="changed after it was signed"):
            load_site(path, known)
    path.write_text(dump_toml(CONTRACT))
    sign_contract(path, key)
    contract_as_site = signature.read_bytes()
    record(tmp_path)
    signature.write_bytes(contract_as_site)
    with pytest.raises(ContractError, match="not for a site record"):
        load_site(path, public)


def test_a_site_that_says_too_little_is_not_signed(tmp_path: Path, root: tuple[Ed25519PrivateKey, Path]) -> None:
    for lacking, changes in (("host_key", {"host_key": ""}), ("until", {"until": None})):
        with pytest.raises(ConfigError, match=f"without `{lacking}` cannot be signed"):
            sign_site(record(tmp_path, **changes), root[0])
    with pytest.raises(ConfigError, match="no key id"):
        Site("lab", "JP", "consortium", "short")
    assert not (tmp_path / "site.toml.sig").exists()


def test_the_roots_name_owns_no_data(tmp_path: Path, root: tuple[Ed25519PrivateKey, Path]) -> None:
    path = tmp_path / "c.toml"
    path.write_text(dump_toml(replace(CONTRACT, owner=ROOT)))
    with pytest.raises(ContractError, match="owns no data"):
        sign_contract(path, root[0])


def asks(memory: Memory, signed: SignedContract, today: date = TODAY) -> Decision:
    site = Site("lab", "JP", "consortium")
    asked = ("road-demo", "", "member-cars", "anchor")
    return permit(signed, request_at(site, memory, *asked, jailed=False, today=today))


def test_an_older_contract_is_replayed_in_vain(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "m.json")
    old, new = signed_of(replace(CONTRACT, serial=1)), signed_of(replace(CONTRACT, serial=2, residency=("JP",)))
    assert asks(memory, old).allowed
    memory.take(old, "road-demo", TODAY)
    memory.take(new, "road-demo", TODAY)
    memory.take(old, "road-demo", TODAY)
    assert "seen serial 2" in asks(memory, old).reason and asks(memory, new).allowed
    other = signed_of(replace(CONTRACT, serial=2, residency=("JP", "DE", "KR")))
    assert "another contract" in asks(memory, other).reason
    assert memory.last("member-cars", "road-2").serial == 0, "each data set counts for itself"
    assert asks(Memory(tmp_path / "m.json"), old).allowed is False, "another process"


def test_a_clock_set_back_brings_no_right_back(tmp_path: Path) -> None:
    memory, signed = Memory(tmp_path / "m.json"), signed_of(CONTRACT)
    memory.take(signed, "road-demo", date(2027, 3, 31))
    assert asks(memory, signed, date(2027, 3, 31)).allowed
    assert "expired" in asks(memory, signed, date(2027, 4, 1)).reason
    assert asks(memory, signed, date(2027, 3, 30)).reason == (
        "the clock was set back: it says 2027-03-30, and this site has seen 2027-03-31"
    )
    memory.take(signed, "road-demo", TODAY)
    assert memory.day() == date(2027, 3, 31)


def test_the_day_of_a_ledger_is_that_of_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert ledger_day(path) == date.min
    at = [date(2026, 11, 23)]
    ledger = Ledger(path, lambda: int(datetime.combine(at[0], time(23, 59), UTC).timestamp() * 1e9))
    ledger.append("run", {"much": "x" * 1_000_000})
    at[0] = TODAY
    ledger.append("run", {})
    with path.open("ab") as f:
        f.write(b'{"time_ns": 99')
    assert ledger_day(path) == TODAY
    for odd in (b"{\n", b"[]\n", b'{"time_ns": "x"}\n', b'{"time_ns": 1e300}\n', b"\n", b"[" * 100_000 + b"\n"):
        path.write_bytes(odd)
        assert ledger_day(path) == date.min


def test_a_damaged_memory_grants_nothing(tmp_path: Path) -> None:
    memory, signed = Memory(tmp_path / "m.json"), signed_of(CONTRACT)
    memory.take(signed, "road-demo", TODAY)
    good = memory.path.read_bytes()
    for end in range(len(good) - 1):
        memory.path.write_bytes(good[:end])
        with pytest.raises(CorruptError, match="damaged, so nothing is granted"):
            asks(memory, signed)
    for odd in (b'"serial": 0', b'"serial": true', b'"serial": 3.0', b'"serial": 3, "more": 1'):
        memory.path.write_bytes(good.replace(b'"serial": 3', odd))
        with pytest.raises(CorruptError):
            memory.take(signed, "road-demo", TODAY)


def test_a_contract_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    key, trust = generate_key(tmp_path / "owner.pem"), TrustStore(tmp_path / "trust")
    trust.add("member-cars", public_of(key))
    path = tmp_path / "c.toml"
    path.write_text(dump_toml(CONTRACT))
    signature = sign_contract(path, key)
    for file in (path, signature):
        good = file.read_bytes()
        ends = range(len(good) if file == path else len(good) - 1)
        for end in ends:
            file.write_bytes(good[:end])
            with pytest.raises(ContractError) as caught:
                load_contract(path, trust)
            assert "\n" not in caught.value.what and caught.value.where
        file.write_bytes(good)
    assert permit(load_contract(path, trust), REQUEST).allowed
