"""The run directory: one lock, and everything that a run makes.

```
RUN/
  config.toml            the resolved configuration
  environment.json       versions and machine, as the run was made
  data.json              digest of the images that the run was made with
  init.json              path and digest of the file of initial weights, if there is one
  supervision.json       path and digest of what the supervision learns from outside the run, such as a teacher
  trials.sqlite          evaluations, trials and the state of every search
  stages/NN-name/        checkpoint.safetensors: weights, optimizer while under way, progress; records.jsonl: events
  searches/NN-name/      front.json; kfold-K.json: the same search on K folds of the search split
  alone/KEY-START-ID/    stages/, result.json of a subnet that was trained by itself
  retrain.json           which of those are searched points that were trained again
  predictors/STAGE/      samples.json, predictor.safetensors, predictor.json: a predictor of accuracy and its score
  insights.json          what good subnets prefer at each training stage
  ranks/                 comparisons of the supernet's ranking with training alone
  tensorboard/           events, by --tensorboard
  latency/               tables of block latencies: the run's own, and copies of given ones
  exports/KEY/           model.onnx, packed.safetensors, export.json, verify.json; features.onnx, features.json
  exports/KEY-START-ID/  the same of a subnet that was trained by itself
  detectors/KEY-ID/      stages/, result.json of a detector on a subnet's features
  timings.json           seconds by phase, summed over interruptions; nothing else depends on it
  report.html, front.png
```
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from qnas.errors import StoreError
from qnas.files import PARTIAL, write_json
from qnas.protocols import State, Trial

CONFIG = "config.toml"
READ_TIMEOUT = 30.0  # seconds to wait for another process to finish a write
_SEARCH_NAME = re.compile(r"[0-9]{2,}-[A-Za-z0-9_.-]+")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS evaluations (
    cache_key TEXT PRIMARY KEY, config_key TEXT NOT NULL, split TEXT NOT NULL,
    metrics TEXT NOT NULL, num_images INTEGER NOT NULL, correct BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS trials (
    search TEXT NOT NULL, number INTEGER NOT NULL, config_key TEXT NOT NULL, sample TEXT NOT NULL,
    metrics TEXT NOT NULL, violation REAL NOT NULL, cache_key TEXT NOT NULL,
    PRIMARY KEY (search, number)
);
CREATE TABLE IF NOT EXISTS searches (
    search TEXT PRIMARY KEY, settings TEXT NOT NULL, state TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS latencies (
    latency_key TEXT PRIMARY KEY, value TEXT NOT NULL
);
"""


class RunDirectory:
    """A locked, open run directory. Use it as a context manager.

    Args:
        path: of the directory.
        create: make it, and refuse one that holds anything but what a process left that was killed while making it.
        follow: only read files, beside the process that holds the lock (see ``qnas.processes``).
        read_only: only read, files and trials, whoever holds the lock; nothing in the folder changes.

    Raises:
        StoreError: absent, in use by another process, or not a run directory.
    """

    def __init__(self, path: Path, *, create: bool = False, follow: bool = False, read_only: bool = False) -> None:
        self.path = path
        self.follow = follow or read_only
        self.read_only = read_only
        if create:
            if path.exists() and not _is_free(path):
                raise StoreError(
                    f"{path} exists and is not an empty folder. Choose another --out, or go on with an unfinished "
                    f"run by `qnas run --resume {path}`."
                )
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(
                    f"The folder {path} cannot be made: {error.strerror}. Choose another --out."
                ) from error
        elif not (path / CONFIG).is_file():
            raise StoreError(
                f"{path} is no run directory: it has no {CONFIG}. Give the folder that `qnas run` or `qnas train` "
                "named (its --out)."
            )
        self._database: sqlite3.Connection | None = None
        self._lock = -1
        if self.follow:
            return
        self._lock = self._acquire()
        for leftover in path.rglob(f"*{PARTIAL}"):
            if leftover.is_file():
                leftover.unlink()

    def _acquire(self) -> int:
        try:
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be written: {error.strerror}. Give a folder of your own.") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise StoreError(
                f"{self.path} is in use by another qnas process. Wait for it or stop it, then try again."
            ) from error
        return lock

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock."""
        if self._database is not None:
            self._database.close()
            self._database = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # --- paths -------------------------------------------------------------------------------------------------

    def stage_checkpoint(self, number: int, name: str) -> Path:
        """Return the checkpoint file of a training stage."""
        return self.path / "stages" / f"{number:02d}-{name}" / "checkpoint.safetensors"

    def search_directory(self, search: str) -> Path:
        """Return the folder of a search; its name may come from a file, so it must be a plain one."""
        if not _SEARCH_NAME.fullmatch(search):
            raise StoreError(f"{self.path} names a search {search!r}, which is no name. The run was tampered with.")
        return self.path / "searches" / search

    def export_directory(self, key: str) -> Path:
        """Return the folder of an exported subnet."""
        return self.path / "exports" / key

    def read_json(self, path: Path, missing: Any = None) -> Any:
        """Return a JSON file's value, or ``missing`` where there is none."""
        if not path.is_file():
            return missing
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StoreError(f"{path} is not valid JSON ({error}). Delete it and make it anew.") from error

    def add_seconds(self, phase: str, seconds: float) -> None:
        """Add to the time that a phase took."""
        if self.follow:
            return
        path = self.path / "timings.json"
        timings = self.read_json(path, {})
        timings[phase] = round(timings.get(phase, 0.0) + seconds, 3)
        write_json(path, timings)

    # --- trials ------------------------------------------------------------------------------------------------

    @property
    def database(self) -> sqlite3.Connection:
        """The trials' database, opened when first used; to write, only by the process that holds the lock."""
        assert not self.follow or self.read_only, "a follower has no database"
        if self._database is None:
            try:
                self._database = self._connect()
            except sqlite3.OperationalError as error:
                if not self.read_only:
                    raise self._unreadable(error) from error
                raise StoreError(
                    f"{self.path / 'trials.sqlite'} cannot be read without writing: {error}. If a process was stopped "
                    f"here in the middle of a write, `qnas report {self.path}` puts that right; then try again."
                ) from error
            except sqlite3.DatabaseError as error:
                raise self._unreadable(error) from error
        return self._database

    def _unreadable(self, error: sqlite3.DatabaseError) -> StoreError:
        return StoreError(f"{self.path / 'trials.sqlite'} cannot be read: {error}. Restore or remove it.")

    def _connect(self) -> sqlite3.Connection:
        path = self.path / "trials.sqlite"
        if self.read_only and path.is_file():
            database = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=READ_TIMEOUT
            )
            database.execute("PRAGMA trusted_schema = OFF")
            database.execute(
                "SELECT 1 FROM searches, trials, evaluations LIMIT 1"
            )  # the file is only read from here on
            return database
        database = sqlite3.connect(":memory:" if self.read_only else path, isolation_level=None)
        database.execute("PRAGMA trusted_schema = OFF")
        database.executescript(_SCHEMA)
        return database

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit everything inside together, or nothing."""
        database = self.database
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")

    def cached(self, cache_key: str) -> tuple[dict[str, float], bytes] | None:
        """Return metrics and packed correctness of a stored evaluation."""
        row = self.database.execute(
            "SELECT metrics, correct FROM evaluations WHERE cache_key = ?", (cache_key,)
        ).fetchone()
        return None if row is None else (json.loads(row[0]), row[1])

    def evaluations(self, config_key: str, split: str) -> list[tuple[dict[str, float], int, bytes]]:
        """Return metrics, number of images and packed correctness of a subnet on a split, oldest measurement first."""
        rows = self.database.execute(
            "SELECT metrics, num_images, correct FROM evaluations WHERE config_key = ? AND split = ? ORDER BY rowid",
            (config_key, split),
        ).fetchall()
        return [(json.loads(metrics), num_images, correct) for metrics, num_images, correct in rows]

    def put_evaluation(
        self, cache_key: str, config_key: str, split: str, metrics: Mapping[str, float], num_images: int, correct: bytes
    ) -> None:
        """Store an evaluation; inside :meth:`transaction` or on its own."""
        self.database.execute(
            "INSERT OR IGNORE INTO evaluations VALUES (?, ?, ?, ?, ?, ?)",
            (cache_key, config_key, split, _text(metrics), num_images, correct),
        )

    def latency(self, key: str) -> dict[str, float] | None:
        """Return a stored latency."""
        row = self.database.execute("SELECT value FROM latencies WHERE latency_key = ?", (key,)).fetchone()
        return None if row is None else dict(json.loads(row[0]))

    def put_latency(self, key: str, value: Mapping[str, float]) -> None:
        """Store a measured latency, once: what is stored already stays."""
        self.database.execute("INSERT OR IGNORE INTO latencies VALUES (?, ?)", (key, _text(value)))

    def put_trial(self, search: str, number: int, trial: Trial, cache_key: str, state: State) -> None:
        """Store a trial and the search's state after it; inside :meth:`transaction`."""
        self.database.execute(
            "INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?)",
            (search, number, trial.key, _text(trial.sample), _text(trial.metrics), trial.violation, cache_key),
        )
        self.put_state(search, state)

    def put_state(self, search: str, state: State) -> None:
        """Store a search's state."""
        self.database.execute("UPDATE searches SET state = ? WHERE search = ?", (_text(state), search))

    def trials(self, search: str | None = None) -> list[tuple[str, int, Trial]]:
        """Return ``(search, number, trial)`` in order."""
        rows = self.database.execute(
            "SELECT search, number, config_key, sample, metrics, violation FROM trials JOIN searches USING (search) "
            "WHERE ? IS NULL OR search = ? ORDER BY searches.rowid, number",
            (search, search),
        ).fetchall()
        return [(r[0], r[1], Trial(r[2], json.loads(r[3]), json.loads(r[4]), r[5])) for r in rows]

    def searches(self) -> list[str]:
        """Return the names of all searches, in the order in which they were begun."""
        return [row[0] for row in self.database.execute("SELECT search FROM searches ORDER BY rowid")]

    def search_settings(self, search: str) -> dict[str, Any]:
        """Return what a search was begun with; nothing for one that the database does not hold."""
        row = self.database.execute("SELECT settings FROM searches WHERE search = ?", (search,)).fetchone()
        return {} if row is None else dict(json.loads(row[0]))

    def open_search(self, name: str, settings: Mapping[str, Any]) -> tuple[str, State | None]:
        """Return the search with these settings and its state, begun anew if there is none.

        Returns:
            Its full name, ``NN-name``, and the state to take up; ``None`` for a new search.
        """
        wanted = _text(settings)
        rows = self.database.execute("SELECT search, settings, state FROM searches ORDER BY rowid").fetchall()
        for search, stored, state in rows:
            if stored == wanted:
                return search, json.loads(state) or None
        search = f"{len(rows) + 1:02d}-{name}"
        self.database.execute("INSERT INTO searches VALUES (?, ?, ?)", (search, wanted, "{}"))
        return search, None

    def canonical_dump(self) -> str:
        """Return every row of the database as text in a fixed order: equal runs, equal dumps."""
        lines = []
        tables = {"evaluations": "cache_key", "trials": "search, number", "searches": "search"}
        for table, order in {**tables, "latencies": "latency_key"}.items():
            for row in self.database.execute(f"SELECT * FROM {table} ORDER BY {order}"):
                lines.append(table + "\t" + "\t".join(v.hex() if isinstance(v, bytes) else str(v) for v in row))
        return "\n".join(lines) + "\n"


def _is_free(path: Path) -> bool:
    """Tell whether a folder is empty, or holds what a process left that was killed before its configuration stood."""
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir()}
    early = ("environment.json", "data.json", "init.json", "supervision.json")  # written before the configuration
    left = {"lock", *early, *(name + PARTIAL for name in (*early, CONFIG))}
    return not names or ("lock" in names and names <= left)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
