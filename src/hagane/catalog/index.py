"""SQLite index of a catalog: quick answers about data sets, episodes and findings.

The folders are the truth; the index is derived from them and made again whenever it is absent, damaged or behind.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

_VERSION = 1
_SCHEMA = """
CREATE TABLE datasets (
  name TEXT PRIMARY KEY, embodiment TEXT NOT NULL, owner TEXT NOT NULL, episodes INTEGER NOT NULL,
  steps INTEGER NOT NULL, seconds REAL NOT NULL, digest TEXT NOT NULL, contract_digest TEXT NOT NULL,
  findings INTEGER NOT NULL);
CREATE TABLE episodes (
  dataset TEXT NOT NULL REFERENCES datasets(name) ON DELETE CASCADE, number INTEGER NOT NULL, id TEXT NOT NULL,
  digest TEXT NOT NULL, source_digest TEXT NOT NULL, steps INTEGER NOT NULL, seconds REAL NOT NULL,
  task TEXT NOT NULL, outcome TEXT NOT NULL, PRIMARY KEY (dataset, number));
CREATE TABLE findings (
  dataset TEXT NOT NULL REFERENCES datasets(name) ON DELETE CASCADE, episode TEXT NOT NULL, stream TEXT NOT NULL,
  kind TEXT NOT NULL, time_ns INTEGER NOT NULL, count INTEGER NOT NULL, detail TEXT NOT NULL);
CREATE INDEX findings_of ON findings(dataset, kind);
"""


class Index:
    """The index file of a catalog.

    Args:
        path: the SQLite file; a file that is damaged or of another version is replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._make()
        except sqlite3.DatabaseError:
            path.unlink(missing_ok=True)
            self._make()

    def digests(self) -> dict[str, tuple[str, str]]:
        """Data set name to (content digest, contract digest), as the index knows them."""
        with closing(self._connect()) as db:
            return {n: (d, c) for n, d, c in db.execute("SELECT name, digest, contract_digest FROM datasets")}

    def put(self, record: Mapping[str, Any], contract_digest: str, facts: Iterable[Mapping[str, Any]]) -> None:
        """Insert or replace a data set with its episodes and findings, in one transaction."""
        name = record["name"]
        episodes, findings = [], []
        for number, f in enumerate(facts):
            seconds = (f["span_ns"][1] - f["span_ns"][0]) / 1e9
            row = (name, number, f["id"], f["content"], f["digest"], f["steps"], seconds, f["task"], f["outcome"])
            episodes.append(row)
            keys = ("episode", "stream", "kind", "time_ns", "count", "detail")
            findings += [(name, *(x[k] for k in keys)) for x in f["findings"]]
        shown = ("name", "embodiment", "owner", "episodes", "steps", "seconds", "digest")
        dataset = (*(record[k] for k in shown), contract_digest, record["findings"])
        with closing(self._connect()) as db, db:
            db.execute("DELETE FROM datasets WHERE name = ?", (name,))
            db.execute("INSERT INTO datasets VALUES (?,?,?,?,?,?,?,?,?)", dataset)
            db.executemany("INSERT INTO episodes VALUES (?,?,?,?,?,?,?,?,?)", episodes)
            db.executemany("INSERT INTO findings VALUES (?,?,?,?,?,?,?)", findings)

    def drop(self, name: str) -> None:
        """Forget a data set."""
        with closing(self._connect()) as db, db:
            db.execute("DELETE FROM datasets WHERE name = ?", (name,))

    def rows(self) -> list[tuple[Any, ...]]:
        """Rows of all data sets by name: name, embodiment, owner, episodes, steps, seconds, digest,
        contract digest, findings."""
        with closing(self._connect()) as db:
            return list(db.execute("SELECT * FROM datasets ORDER BY name"))

    def finding_counts(self, name: str) -> dict[str, int]:
        """Findings of a data set by kind."""
        with closing(self._connect()) as db:
            query = "SELECT kind, COUNT(*) FROM findings WHERE dataset = ? GROUP BY kind ORDER BY kind"
            return dict(db.execute(query, (name,)))

    def outcome_counts(self, name: str) -> dict[str, int]:
        """Episodes of a data set by outcome ("" where unknown)."""
        with closing(self._connect()) as db:
            query = "SELECT outcome, COUNT(*) FROM episodes WHERE dataset = ? GROUP BY outcome ORDER BY outcome"
            return dict(db.execute(query, (name,)))

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=30)
        db.execute("PRAGMA foreign_keys = ON")
        return db

    def _make(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._connect()) as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == _VERSION:
                db.execute("SELECT COUNT(*) FROM datasets").fetchone()
                return
            if version != 0 or db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                raise sqlite3.DatabaseError("another version")
            with db:
                db.executescript(_SCHEMA + f"PRAGMA user_version = {_VERSION};")
