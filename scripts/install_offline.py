"""Install hagane from a folder of wheels, without any network: signature first, then every digest, then pip.

usage: install_offline.py --key SIGNER.pub [--venv DIR] [--check] [BUNDLE]

BUNDLE is the folder that `make offline-bundle` made (default: the folder of this script); --key is the public key of
whoever signed it, got by a way you trust: neither the key nor this script should be believed because they lie in the
folder. --check only checks. Standard library only: nothing is installed yet. pip then compares every wheel's sha256
again as it unpacks it, so a file that changes in between is refused too.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

MANIFEST = "bundle.json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "https://hagane.invalid/offline-bundle/v1"
_SPKI = bytes.fromhex("302a300506032b6570032100")  # DER head of an Ed25519 public key (RFC 8410)
# the curve of RFC 8032, section 5.1
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT = pow(2, (P - 1) // 4, P)
Point = tuple[int, int, int, int]


class Refused(Exception):
    """Why the bundle is not installed."""


def check_signature(public: bytes, message: bytes, signature: bytes) -> bool:
    """Ed25519 (RFC 8032, section 5.1.7), with the check that S is below L. No secret is here to leak by its timing."""
    if len(public) != 32 or len(signature) != 64:
        return False
    a, r = _unpacked(public), _unpacked(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L:
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    base = _unpacked((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
    assert base is not None
    return _same(_times(s, base), _plus(r, _times(h, a)))


def _unpacked(data: bytes) -> Point | None:
    """A point from its 32 bytes: y, and the sign of x in the last bit."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    if y >= P:
        return None
    x2 = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * ROOT % P
    if (x * x - x2) % P or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


def _plus(p: Point, q: Point) -> Point:
    """Addition in extended coordinates (RFC 8032, section 5.1.4)."""
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def _times(n: int, p: Point) -> Point:
    out = (0, 1, 1, 0)
    while n:
        out = _plus(out, p) if n & 1 else out
        p, n = _plus(p, p), n >> 1
    return out


def _same(p: Point, q: Point) -> bool:
    return (p[0] * q[2] - q[0] * p[2]) % P == 0 and (p[1] * q[2] - q[1] * p[2]) % P == 0


def read_key(path: Path) -> bytes:
    """The 32 bytes of an Ed25519 public key in PEM."""
    found = re.fullmatch(
        r"-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*", path.read_text("ascii")
    )
    der = base64.b64decode(found[1]) if found else b""
    if len(der) != 44 or not der.startswith(_SPKI):
        raise Refused(f"{path} is no Ed25519 public key in PEM")
    return der[12:]


def signed_files(bundle: Path, public: bytes) -> dict[str, str]:
    """File name to sha256, out of a manifest whose signature was checked.

    Raises:
        Refused: no manifest, or not signed by this key.
    """
    try:
        envelope = json.loads((bundle / MANIFEST).read_bytes())
        kind, payload = envelope["payloadType"], base64.b64decode(envelope["payload"], validate=True)
        words = kind.encode()
        message = b"DSSEv1 %d %b %d %b" % (len(words), words, len(payload), payload)
        signatures = [base64.b64decode(s["sig"], validate=True) for s in envelope["signatures"]]
        signed = kind == PAYLOAD_TYPE and any(check_signature(public, message, s) for s in signatures)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise Refused(f"{bundle / MANIFEST} cannot be read: {e}") from None
    if not signed:
        raise Refused(f"{bundle / MANIFEST} is not signed by this key")
    statement = json.loads(payload)
    if statement["predicateType"] != PREDICATE_TYPE:
        raise Refused(f"{bundle / MANIFEST} is about something else")
    return {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}


def check_files(bundle: Path, files: dict[str, str]) -> None:
    """Compare every file with its sha256.

    Raises:
        Refused: one differs, is missing, is no plain file, or is there and not in the manifest.
    """
    here = {p.relative_to(bundle).as_posix(): p for p in bundle.rglob("*") if p.is_symlink() or not p.is_dir()}
    here.pop(MANIFEST, None)
    for name in sorted(set(here) ^ set(files)):
        raise Refused(f"{name} {'is missing' if name in files else 'is not in the signed list'}")
    for name, path in sorted(here.items()):
        if path.is_symlink() or not path.is_file():
            raise Refused(f"{name} is no plain file")
        with path.open("rb") as f:
            if hashlib.file_digest(f, "sha256").hexdigest() != files[name]:
                raise Refused(f"{name} is not the file that was signed")


def requirements_of(files: dict[str, str]) -> str:
    """pip's list: every wheel with its sha256, nothing else."""
    lines = []
    for name, digest in sorted(files.items()):
        if name.startswith("wheels/"):
            project, version = name.removeprefix("wheels/").split("-")[:2]
            lines.append(f"{project}=={version} --hash=sha256:{digest}\n")
    return "".join(lines)


def install(bundle: Path, files: dict[str, str], venv: Path) -> int:
    """Make a virtual environment and let pip fill it from the folder alone; pip's exit code."""
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(requirements_of(files), "utf-8")
        pip = [str(venv / "bin" / "python"), "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "-q"]
        alone = ["--no-index", "--no-deps", "--only-binary=:all:", "--find-links", str((bundle / "wheels").resolve())]
        return subprocess.run([*pip, *alone, "--require-hashes", "-r", str(wanted)], check=False).returncode


def main(argv: list[str]) -> int:
    """Check, and install unless told not to."""
    parser = argparse.ArgumentParser(description="install hagane from a signed folder of wheels, offline")
    parser.add_argument("bundle", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--key", type=Path, required=True, help="public key (PEM) of whoever signed the folder")
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="virtual environment to make")
    parser.add_argument("--check", action="store_true", help="only check")
    o = parser.parse_args(argv)
    try:
        files = signed_files(o.bundle, read_key(o.key))
        check_files(o.bundle, files)
    except (Refused, OSError, ValueError) as e:
        print(f"install: {e}\n  next: do not install from this folder; get it again", file=sys.stderr)
        return 1
    print(f"install: signed, and all {len(files)} files as signed", flush=True)
    return 0 if o.check else install(o.bundle, files, o.venv)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
