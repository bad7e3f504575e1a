"""Keys, names, sites, and contracts that are signed, forged, changed or nobody's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import given
from hypothesis import strategies as st

from hagane.seal import (
    COUNTRIES,
    Site,
    TrustStore,
    check_name,
    generate_key,
    is_name,
    key_id_of,
    load_contract,
    load_private,
    load_site,
    permit,
    public_of,
    sign_contract,
)
from hagane.seal.envelope import pae
from hagane.terms import ConfigError, ContractError, dump_toml
from tests.seal_setup import CONTRACT, REQUEST, scene


def test_a_signed_contract_loads_and_allows(tmp_path: Path) -> None:
    signed = scene(tmp_path).load()
    assert signed.contract == CONTRACT
    assert permit(signed, REQUEST).allowed


def test_the_signature_file_is_dsse_json(tmp_path: Path) -> None:
    made = scene(tmp_path)
    envelope = json.loads(made.path.with_name("contract.toml.sig").read_bytes())
    assert set(envelope) == {"payloadType", "payload", "signatures"}
    assert envelope["signatures"][0]["keyid"] == key_id_of(public_of(made.key))
    # the example of the DSSE specification
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def refused(made_path: Path, trust: TrustStore, words: str) -> None:
    with pytest.raises(ContractError, match=words) as caught:
        load_contract(made_path, trust)
    assert "\n" not in caught.value.what


def test_unsigned(tmp_path: Path) -> None:
    made = scene(tmp_path)
    made.path.with_name("contract.toml.sig").unlink()
    refused(made.path, made.trust, "is not signed")


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.toml", TrustStore(tmp_path), "no such contract")


def test_changed_after_signing(tmp_path: Path) -> None:
    made = scene(tmp_path)
    made.path.write_text(made.path.read_text().replace('"evaluate"', '"serve"'))
    refused(made.path, made.trust, "changed after it was signed")


def test_signed_by_somebody_else(tmp_path: Path) -> None:
    made = scene(tmp_path)
    sign_contract(made.path, generate_key(tmp_path / "other.pem"))
    refused(made.path, made.trust, "another key than that of its owner")


def test_forged_under_the_owners_key_id(tmp_path: Path) -> None:
    made = scene(tmp_path)
    path = sign_contract(made.path, generate_key(tmp_path / "other.pem"))
    envelope = json.loads(path.read_bytes())
    envelope["signatures"][0]["keyid"] = key_id_of(public_of(made.key))
    path.write_text(json.dumps(envelope))
    refused(made.path, made.trust, "forged or damaged")


def test_unknown_owner(tmp_path: Path) -> None:
    made = scene(tmp_path)
    refused(made.path, TrustStore(tmp_path / "empty"), "owner 'member-cars' is not known on this site")


def test_a_signature_of_another_document_is_no_contract(tmp_path: Path) -> None:
    made = scene(tmp_path)
    path = made.path.with_name("contract.toml.sig")
    path.write_text(path.read_text().replace("contract+toml", "contract+TOML"))
    refused(made.path, made.trust, "not for a contract")


@pytest.mark.parametrize("name", ["contract.toml", "contract.toml.sig"])
def test_every_flipped_bit_is_refused(tmp_path: Path, name: str) -> None:
    made = scene(tmp_path)
    path = tmp_path / name
    good = path.read_bytes()
    for at in range(len(good)):
        bit = 1 << (at % 8)
        path.write_bytes(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
        with pytest.raises(ContractError):
            made.load()
    path.write_bytes(good)
    made.load()


@given(data=st.binary(max_size=300))
def test_any_bytes_as_signature_give_one_clear_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    made = scene(tmp_path_factory.mktemp("any"))
    made.path.with_name("contract.toml.sig").write_bytes(data)
    with pytest.raises(ContractError):
        made.load()


BAD_TERMS = {
    "unknown key": ('owner = "member-cars"', 'ownr = "member-cars"', "unknown key `ownr`"),
    "purpose": ('"evaluate"', '"evalute"', "did you mean `evaluate`"),
    "country": ('"DE"', '"GX"', "no such country: GX"),
    "small letters": ('"DE"', '"de"', "no such country: de"),
    "owner with path": ('"member-cars"', '"../member-cars"', "not a member name"),
    "odd letters": ('"member-cars"', '"member-c\u0430rs"', "not a member name"),
    "site": ('"plant-7"', '"*"', "not a site name"),
    "nothing granted": ('["anchor", "evaluate"]', "[]", "`purposes` is empty"),
    "version": ("version = 2", "version = 1", "version 1 of contracts is not known"),
    "date": ("2027-03-31", '"2027-03-31"', "`until` must be date"),
    "date and time": ("2027-03-31", "2027-03-31T00:00:00", "`until` must be date"),
    "misspelt protection": ('"process"', '"proces"', "did you mean `process`"),
    "misspelt key of protection": ("protection =", "protecton =", "did you mean `protection`"),
    "misspelt withdrawal": ('withdrawal = "D"', 'withdrawal = "d"', "`withdrawal` cannot be 'd'"),
    "who may serve": ('may_serve = ["member-cars"]', 'may_serve = ["../x"]', "not a member name"),
    "who may merge": ("may_merge = []", 'may_merge = ["member-\uff43ars"]', "not a member name"),
    "serial": ("serial = 3", "serial = 0", "`serial` cannot be 0"),
    "large serial": ("serial = 3", "serial = 9007199254740993", "`serial` cannot be"),
    "no serial": ("serial = 3\n", "", "missing key `serial`"),
    "no issue date": ("issued = 2026-04-01\n", "", "missing key `issued`"),
    "ends before it begins": ("issued = 2026-04-01", "issued = 2027-04-01", "before it is issued"),
    "digest": ("[digests]", '[digests]\nroad-2 = "abc"', "no sha256 in hex"),
    "digest of something else": ("[digests]", f'[digests]\nroad-3 = "{"a" * 64}"', "did you mean `road-2`"),
    "data set": ('"road-2"', '"road/2"', "no usable name"),
}


@pytest.mark.parametrize("case", BAD_TERMS)
def test_bad_terms_can_neither_be_signed_nor_loaded(tmp_path: Path, case: str) -> None:
    old, new, words = BAD_TERMS[case]
    made = scene(tmp_path)
    text = dump_toml(CONTRACT)
    assert old in text
    made.path.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(ContractError) as caught:
        sign_contract(made.path, made.key)
    assert words in str(caught.value)
    assert str(made.path) in str(caught.value)
    with pytest.raises(ContractError):
        made.load()


def test_a_contract_that_is_no_text(tmp_path: Path) -> None:
    made = scene(tmp_path)
    made.path.write_bytes(b"\xff\xfe\x00")
    refused(made.path, made.trust, "not UTF-8 text")


def test_private_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "k.pem"
    key = generate_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert key_id_of(public_of(load_private(path))) == key_id_of(public_of(key))
    with pytest.raises(ContractError, match="not overwritten"):
        generate_key(path)
    path.chmod(0o644)
    with pytest.raises(ContractError, match="open to other users"):
        load_private(path)


def test_keys_of_another_kind_are_refused(tmp_path: Path) -> None:
    other = generate_private_key(SECP256R1())
    pem = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for data in (pem, b"nonsense"):
        path = tmp_path / "odd.pem"
        path.unlink(missing_ok=True)
        path.touch(0o600)
        path.write_bytes(data)
        with pytest.raises(ContractError, match="not an Ed25519 private key"):
            load_private(path)
    trust = TrustStore(tmp_path)
    (tmp_path / "member-cars.pub").write_bytes(
        other.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(ContractError, match="not an Ed25519 public key"):
        trust.key_of("member-cars")
    with pytest.raises(ContractError, match="cannot be read"):
        load_private(tmp_path / "none.pem")


def test_trust_is_not_replaced_in_silence(tmp_path: Path) -> None:
    trust = TrustStore(tmp_path)
    one, two = generate_key(tmp_path / "1.pem"), generate_key(tmp_path / "2.pem")
    assert trust.add("member-steel", public_of(one)) == trust.add("member-steel", public_of(one))
    with pytest.raises(ContractError, match="another key"):
        trust.add("member-steel", public_of(two))
    assert trust.owners() == ("member-steel",)


ODD_NAMES = ["", ".", "..", "a/b", "a\\b", "a b", "A", "-a", "a-", "é", "ａ", "m\u0456x", "a\n", "a\0", "x" * 65, "a.b"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_member_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        check_name(name)
    with pytest.raises(ConfigError):
        TrustStore(tmp_path).path_of(name)


@given(st.text())
def test_a_name_is_one_plain_file_name(name: str) -> None:
    if is_name(name):
        assert name.isascii() and name == name.lower() and Path(name).name == name and not name.startswith(".")


def test_site_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(dump_toml(Site("lab", "JP", "consortium")))
    assert load_site(path) == Site("lab", "JP", "consortium")
    path.write_text('name = "lab"\ncontry = "JP"\noperator = "consortium"\n')
    with pytest.raises(ConfigError, match=r"site\.toml:2: unknown key `contry`") as caught:
        load_site(path)
    assert "country" in caught.value.next_step
    path.write_text('name = "lab"\ncountry = "JPN"\noperator = "consortium"\n')
    with pytest.raises(ConfigError, match="no country has the code 'JPN'") as caught:
        load_site(path)
    assert "JP" in caught.value.next_step


def test_the_list_of_countries_is_whole() -> None:
    assert len(COUNTRIES) == 249
    assert {"JP", "DE", "US", "KR", "TW"} <= COUNTRIES
    assert not {"UK", "EU", "XK", "AN", "YU"} & COUNTRIES
