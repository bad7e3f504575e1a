"""What `hagane catalog export --to lerobot` writes opens in the peer's own loader, every value as it was recorded.

make bench-lerobot        (makes an environment with lerobot 0.4.4 and runs this file in it)
"""

from __future__ import annotations

import sys
import tempfile
from datetime import date
from pathlib import Path

from lerobot_peer import ARM, chunks_in_peer, compare_in_peer, define_missing_operators, made

from hagane.catalog import Catalog
from hagane.catalog.export import export_set, verify_export
from hagane.seal import Site, TrustStore, generate_key, load_contract, public_of, sign_contract
from hagane.terms import Contract, dump_toml


def exported(folder: Path) -> Path:
    """A set that went through a catalog and out again."""
    key = generate_key(folder / "key.pem")
    trust = TrustStore(folder / "trust")
    trust.add(ARM.owner, public_of(key))
    terms = Contract(ARM.owner, ("arm-demo",), ("JP",), ("plant-7",), ("export",), date(2099, 12, 31))
    path = folder / "contract.toml"
    path.write_text(dump_toml(terms), "utf-8")
    sign_contract(path, key)
    catalog = Catalog.open(folder / "catalog", Site("plant-7", "JP", "consortium"), trust)
    catalog.add("arm-demo", ARM, load_contract(path, trust), made())
    done = export_set(catalog, "arm-demo", "lerobot", folder / "out" / "arm-demo")
    assert verify_export(done.folder) == done.files
    return done.folder


def main() -> int:
    try:
        define_missing_operators()
        import datasets
        import lerobot

        datasets.disable_progress_bars()
        print(f"peer: lerobot {lerobot.__version__}")
    except ImportError as e:
        print(f"the peer cannot be imported ({e}); run: make bench-lerobot", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        root = exported(Path(name))
        compare_in_peer(root)
        print("  right  an exported set in the peer's loader, every value")
        chunks_in_peer(root)
        print("  right  action chunks and batches of it by the peer")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
