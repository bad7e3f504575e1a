"""Make a folder from which hagane installs without a network: wheels, a list of what is in it (SBOM), a signature.

usage: offline_bundle.py --key SIGNER.pem [--out DIR] [--extras intake,worlds]     (run by make offline-bundle)

DIR/
    wheels/                hagane's own and every dependency at its pinned version, for this Python and machine
    sbom.cdx.json          CycloneDX 1.6: name, version, licence and sha256 of each
    constraints.txt, install_offline.py, LICENSE
    bundle.json            in-toto statement over all of them in a DSSE envelope, Ed25519: written last
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import uuid
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any

from install_offline import MANIFEST, PAYLOAD_TYPE, PREDICATE_TYPE

ROOT = Path(__file__).resolve().parents[1]
SBOM = "sbom.cdx.json"


def main(argv: list[str]) -> int:
    """Collect, describe, sign."""
    parser = argparse.ArgumentParser(description="make a signed folder of wheels for machines without a network")
    parser.add_argument("--key", type=Path, required=True, help="private key (PEM) of `hagane contract keygen`")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "offline")
    parser.add_argument("--extras", default="intake,worlds", help="optional parts, as in pyproject.toml")
    parser.add_argument("--wheels", type=Path, help="folder of wheels at hand: pip is not asked for any")
    o = parser.parse_args(argv)
    from hagane.terms import HaganeError

    try:
        files = make(o.out, o.key, o.extras, o.wheels)
    except (HaganeError, OSError, subprocess.CalledProcessError, ValueError) as e:
        print(f"offline-bundle: {e}", file=sys.stderr)
        return 1
    size = sum((o.out / name).stat().st_size for name in files)
    print(f"{o.out}: {len(files)} files, {size / 2**20:,.0f} MiB; on the other machine:")
    print("  python3 install_offline.py --key SIGNER.pub FOLDER     (key and script by a way of their own)")
    return 0


def make(out: Path, key: Path, extras: str, at_hand: Path | None) -> dict[str, str]:
    """Make the folder, whole or absent; file name to sha256.

    Raises:
        HaganeError: no such key.
        CalledProcessError: pip could not collect the wheels; its own words are on the terminal.
        ValueError: two versions of one package, a folder that is there already.
    """
    from hagane.seal import load_private
    from hagane.seal.envelope import seal_bytes
    from hagane.terms import canonical_json

    private = load_private(key)
    if out.exists():
        raise ValueError(f"{out} is there already; remove it, or choose another --out")
    making = out.with_name(f".making-{out.name}")
    shutil.rmtree(making, ignore_errors=True)
    (making / "wheels").mkdir(parents=True)
    try:
        if at_hand:
            for wheel in sorted(at_hand.glob("*.whl")):
                shutil.copyfile(wheel, making / "wheels" / wheel.name)
        else:
            collect(making / "wheels", extras)
        for name in ("constraints.txt", "LICENSE", "scripts/install_offline.py"):
            shutil.copyfile(ROOT / name, making / Path(name).name)
        sbom = sbom_of(sorted((making / "wheels").glob("*.whl")))
        (making / SBOM).write_text(json.dumps(sbom, indent=1, ensure_ascii=False) + "\n", "utf-8")
        files = {p.relative_to(making).as_posix(): sha256(p) for p in sorted(making.rglob("*")) if p.is_file()}
        statement = {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in files.items()],
            "predicateType": PREDICATE_TYPE,
            "predicate": {"python": list(sys.version_info[:2]), "extras": extras},
        }
        (making / MANIFEST).write_bytes(seal_bytes(PAYLOAD_TYPE, canonical_json(statement), private))
        making.rename(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return files


def collect(wheels: Path, extras: str) -> None:
    """Ask pip for wheels at the pinned versions; what is only there as source is built. torch first and pinned."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "-w", str(wheels)]
    pins = ROOT / "constraints.txt"
    torch = re.search(r"^torch==\S+$", pins.read_text("utf-8"), re.M)
    if torch is None:
        raise ValueError("constraints.txt has no line torch==...")
    subprocess.run([*pip, torch[0], "-c", str(pins)], check=True)
    own = f"{ROOT}[{extras}]" if extras else str(ROOT)
    subprocess.run([*pip, "--find-links", str(wheels), own, "-c", str(pins)], check=True)


def sbom_of(wheels: list[Path]) -> dict[str, Any]:
    """A CycloneDX 1.6 document (cyclonedx.org/docs/1.6/json) from the wheels' own metadata.

    Raises:
        ValueError: two wheels of one package.
    """
    parts = [component_of(wheel) for wheel in wheels]
    names = [part["name"] for part in parts]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"two versions of {twice[0]}: only one can be installed")
    own = next((p for p in parts if p["name"] == "hagane"), None)
    known = hashlib.sha256("".join(p["hashes"][0]["content"] for p in parts).encode()).hexdigest()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # of the content, not of the moment: equal wheels give an equal document
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, known)}",
        "version": 1,
        "metadata": {"component": {**own, "type": "application", "bom-ref": "hagane-itself"}} if own else {},
        "components": parts,
    }


def component_of(wheel: Path) -> dict[str, Any]:
    """One wheel as a CycloneDX component.

    Raises:
        ValueError: no wheel.
    """
    with zipfile.ZipFile(wheel) as z:
        inside = [n for n in z.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
        if len(inside) != 1:
            raise ValueError(f"{wheel.name} is no wheel: it has {len(inside)} METADATA files")
        about = BytesParser().parsebytes(z.read(inside[0]))
    name = re.sub(r"[-_.]+", "-", str(about["Name"])).lower()
    purl = f"pkg:pypi/{name}@{about['Version']}"
    part: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": str(about["Version"]),
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": sha256(wheel)}],
    }
    if about["Summary"]:
        part["description"] = str(about["Summary"])
    if licences := licences_of(about):
        part["licenses"] = licences
    return part


def licences_of(about: Message) -> list[dict[str, Any]]:
    """The licence as the package states it: an SPDX expression, else its own words, else its classifiers."""
    if about["License-Expression"]:
        return [{"expression": str(about["License-Expression"])}]
    told = str(about["License"] or "").strip()
    if told and told != "UNKNOWN" and "\n" not in told and len(told) <= 80:
        return [{"license": {"name": told}}]
    classes = [c for c in about.get_all("Classifier", []) if c.startswith("License ::")]
    return [{"license": {"name": c.split(" :: ")[-1]}} for c in classes]


def sha256(path: Path) -> str:
    """64 hex digits."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
