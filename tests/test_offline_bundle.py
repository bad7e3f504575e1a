"""The offline bundle: signed, described, and refused when a single byte differs; (slow) it installs and works."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from hagane.seal import generate_key, public_of, public_pem
from hagane.seal.envelope import read_envelope, verify_envelope

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    """One of scripts/, imported."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


install, bundle = script("install_offline"), script("offline_bundle")

RFC_8032 = (  # section 7.1: public key, message, signature
    ("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
    ("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),
    ("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"),
)  # fmt: skip


@pytest.mark.parametrize("vector", RFC_8032)
def test_the_installers_own_signature_check_is_ed25519(vector: tuple[str, str, str]) -> None:
    public, message, signature = map(bytes.fromhex, vector)
    assert install.check_signature(public, message, signature)
    s = int.from_bytes(signature[32:], "little")
    wrong = [signature[:32] + (s + install.L).to_bytes(32, "little"), signature[:63], b"\0" * 64, signature[32:] * 2]
    for part, size in ((0, 32), (1, len(message)), (2, 64)):
        for at in range(0, size, 5):
            changed = [public, message, signature]
            changed[part] = bytes(b ^ (at == i) for i, b in enumerate(changed[part]))
            assert not install.check_signature(*changed)
    assert not any(install.check_signature(public, message, w) for w in wrong)
    assert not install.check_signature(b"\xff" * 32, message, signature)


def test_it_agrees_with_cryptography(tmp_path: Path) -> None:
    for k in range(5):
        key = generate_key(tmp_path / f"{k}.pem")
        (tmp_path / f"{k}.pub").write_bytes(public_pem(public_of(key)))
        public = install.read_key(tmp_path / f"{k}.pub")
        assert public == public_of(key).public_bytes_raw()
        message = hashlib.sha512(bytes([k])).digest() * k
        assert install.check_signature(public, message, key.sign(message))
        assert not install.check_signature(public, message + b"x", key.sign(message))
    with pytest.raises(install.Refused, match="no Ed25519 public key"):
        install.read_key(tmp_path / "0.pem")


def wheel(folder: Path, name: str, version: str, *about: str) -> Path:
    """A small real wheel with one module."""
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *about]
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(f"{name}.py", f"version = {version!r}\n")
        z.writestr(f"{info}/METADATA", "\n".join(lines) + "\n\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        rows = [f"{n},," for n in (f"{name}.py", f"{info}/METADATA", f"{info}/WHEEL", f"{info}/RECORD")]
        z.writestr(f"{info}/RECORD", "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three small wheels, and its keys beside it."""
    home = tmp_path_factory.mktemp("bundle")
    (home / "at-hand").mkdir()
    wheel(home / "at-hand", "hagane", "0.1.0", "License-Expression: Apache-2.0", "Summary: one model")
    wheel(home / "at-hand", "some_part", "2.0", "License: BSD-3-Clause")
    wheel(home / "at-hand", "other", "1.5", "Classifier: License :: OSI Approved :: MIT License")
    key = generate_key(home / "signer.pem")
    (home / "signer.pub").write_bytes(public_pem(public_of(key)))
    args = ["--key", str(home / "signer.pem"), "--out", str(home / "out"), "--wheels", str(home / "at-hand")]
    assert bundle.main(args) == 0
    return home


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def checked(made: Path, folder: Path, key: str = "signer.pub") -> int:
    return int(install.main([str(folder), "--key", str(made / key), "--check"]))


def test_the_bundle_is_signed_and_lists_every_file(made: Path) -> None:
    assert checked(made, made / "out") == 0
    envelope = read_envelope((made / "out" / "bundle.json").read_bytes(), "bundle")
    from hagane.seal import load_private

    assert verify_envelope(envelope, public_of(load_private(made / "signer.pem")))
    names = {s["name"] for s in json.loads(envelope.payload)["subject"]}
    assert names == {p.relative_to(made / "out").as_posix() for p in (made / "out").rglob("*") if p.is_file()} - {
        "bundle.json"
    }
    assert bundle.main(["--key", str(made / "signer.pem"), "--out", str(made / "out")]) == 1


def test_the_sbom_has_what_cyclonedx_requires(made: Path) -> None:
    sbom = json.loads((made / "out" / "sbom.cdx.json").read_text("utf-8"))
    assert (sbom["bomFormat"], sbom["specVersion"], sbom["version"]) == ("CycloneDX", "1.6", 1)
    uuid = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    assert re.fullmatch(f"urn:uuid:{uuid}", sbom["serialNumber"])
    refs = [sbom["metadata"]["component"]["bom-ref"], *(c["bom-ref"] for c in sbom["components"])]
    assert len(set(refs)) == len(refs)
    licences = {}
    for c in sbom["components"]:
        assert (
            c["type"] == "library"
            and c["name"]
            and c["version"]
            and c["purl"] == f"pkg:pypi/{c['name']}@{c['version']}"
        )
        (h,) = c["hashes"]
        assert h["alg"] == "SHA-256" and re.fullmatch("[0-9a-f]{64}", h["content"])
        path = next((made / "out" / "wheels").glob(f"{c['name'].replace('-', '_')}-*.whl"))
        assert h["content"] == hashlib.sha256(path.read_bytes()).hexdigest()
        (licence,) = c["licenses"]
        assert set(licence) == {"expression"} or set(licence["license"]) == {"name"}
        licences[c["name"]] = licence.get("expression") or licence["license"]["name"]
    assert licences == {"hagane": "Apache-2.0", "some-part": "BSD-3-Clause", "other": "MIT License"}


def test_every_flipped_byte_is_refused(made: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted(p for p in copy.rglob("*") if p.is_file() and p.name != "bundle.json"):
        sound = path.read_bytes()
        for at in {0, len(sound) // 2, len(sound) - 1} | set(range(0, len(sound), max(1, len(sound) // 20))):
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
            assert checked(made, copy) == 1
        path.write_bytes(sound)
    assert "is not the file that was signed" in capsys.readouterr().err
    manifest = copy / "bundle.json"
    table = json.loads(manifest.read_text())
    payload = base64.b64decode(table["payload"])
    for at in range(0, len(payload), 97):
        changed = base64.b64encode(payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]).decode()
        manifest.write_text(json.dumps({**table, "payload": changed}))
        assert checked(made, copy) == 1
    manifest.write_text(json.dumps(table))
    assert checked(made, copy) == 0


def test_what_is_added_taken_or_signed_by_another_is_refused(
    made: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(words: str, key: str = "signer.pub") -> None:
        assert checked(made, copy, key) == 1
        assert words in capsys.readouterr().err

    extra = wheel(copy / "wheels", "evil", "9.9")
    refused("is not in the signed list")
    extra.unlink()
    taken = copy / "wheels" / "other-1.5-py3-none-any.whl"
    kept = taken.read_bytes()
    taken.unlink()
    refused("is missing")
    (copy.parent / "elsewhere").write_bytes(kept)
    taken.symlink_to(copy.parent / "elsewhere")
    refused("is no plain file")
    taken.unlink()
    taken.write_bytes(kept)
    stranger = generate_key(made / "stranger.pem") if not (made / "stranger.pem").exists() else None
    if stranger:
        (made / "stranger.pub").write_bytes(public_pem(public_of(stranger)))
    refused("is not signed by this key", "stranger.pub")
    (copy / "bundle.json").write_text("{}")
    refused("cannot be read")
    wheel(made / "at-hand", "other", "1.6")
    args = ["--key", str(made / "signer.pem"), "--out", str(copy / "new"), "--wheels", str(made / "at-hand")]
    assert bundle.main(args) == 1 and not (copy / "new").exists()
    (made / "at-hand" / "other-1.6-py3-none-any.whl").unlink()


IN_NAMESPACE = ["unshare", "-rn", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "sh"]


def alone(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A command in an empty network namespace."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("no network namespace of one's own here (unshare -rn)")
    return subprocess.run([*IN_NAMESPACE, *command], capture_output=True, text=True, check=False)


def test_pip_itself_refuses_a_wheel_that_changes_after_the_check(made: Path, copy: Path) -> None:
    files = install.signed_files(copy, install.read_key(made / "signer.pub"))
    wheel(copy / "wheels", "other", "1.5", "Summary: another")
    (copy.parent / "r.txt").write_text(install.requirements_of(files))
    pip = [sys.executable, "-m", "pip", "--isolated", "install", "--no-index", "--no-deps", "--dry-run", "--target"]
    links = ["--find-links", str(copy / "wheels"), "--require-hashes", "-r", str(copy.parent / "r.txt")]
    done = alone([*pip, str(copy.parent / "target"), *links])
    assert done.returncode != 0 and "DO NOT MATCH THE HASHES" in done.stderr


@pytest.mark.slow
def test_a_small_bundle_installs_without_a_network(made: Path, copy: Path) -> None:
    command = [sys.executable, str(copy / "install_offline.py"), "--key", str(made / "signer.pub")]
    done = alone([*command, "--venv", str(copy.parent / "venv")])
    assert done.returncode == 0, done.stderr
    said = alone([str(copy.parent / "venv" / "bin" / "python"), "-c", "import some_part; print(some_part.version)"])
    assert said.stdout.strip() == "2.0"


@pytest.mark.slow
def test_the_real_bundle_installs_and_works_without_a_network(tmp_path: Path) -> None:
    """Needs pip's packages at hand or a network while it is made: about 1 GB of disk."""
    key = generate_key(tmp_path / "signer.pem")
    (tmp_path / "signer.pub").write_bytes(public_pem(public_of(key)))
    make = [sys.executable, str(ROOT / "scripts" / "offline_bundle.py"), "--key", str(tmp_path / "signer.pem")]
    done = subprocess.run([*make, "--extras", "", "--out", str(tmp_path / "out")], capture_output=True, text=True)
    if done.returncode and re.search("No matching distribution|connection|resolve", done.stdout + done.stderr):
        pytest.skip("the pinned wheels cannot be had here")
    assert done.returncode == 0, done.stderr
    sbom = json.loads((tmp_path / "out" / "sbom.cdx.json").read_text("utf-8"))
    assert {"hagane", "torch", "cryptography"} <= {c["name"] for c in sbom["components"]}
    assert all(c.get("licenses") for c in sbom["components"]), [
        c["name"] for c in sbom["components"] if not c.get("licenses")
    ]
    installer = [sys.executable, str(tmp_path / "out" / "install_offline.py"), "--key", str(tmp_path / "signer.pub")]
    done = alone([*installer, "--venv", str(tmp_path / "venv")])
    assert done.returncode == 0, done.stderr
    said = alone([str(tmp_path / "venv" / "bin" / "hagane"), "plan", "size", "1m"])
    assert said.returncode == 0 and "1m" in said.stdout, said.stderr
