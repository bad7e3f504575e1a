"""What `hagane catalog export --to lerobot` writes opens in the peer's own loader, every value as it was recorded.

make bench-lerobot        (makes an environment with lerobot 0.4.4 and runs this file in it)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from lerobot_peer import chunks_in_peer, compare_in_peer, define_missing_operators, stored

from hagane.catalog.export import export_set, verify_export


def exported(folder: Path) -> Path:
    """A set that went through a catalog and out again."""
    catalog = stored(folder, "export")
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
