"""Runs -> what a comparison needs of them. Reading changes nothing and waits for nobody."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qnas.config import read_toml
from qnas.errors import ConfigError, StoreError
from qnas.report.answers import Answers, stored_answers
from qnas.report.data import Json
from qnas.store import CONFIG, RunDirectory

FRONT = "front.json"


@dataclass(frozen=True)
class Entry:
    """One finished search of one run.

    Attributes:
        name: unique among those compared.
        seed: of the run.
        front: what ``front.json`` holds.
        met: metrics of the search's trials that meet its constraints.
        digest: of the images of all splits; equal digests, equal test images in the same order.
        answers: of the front's points on the test split.
        identity: the configuration and the search's settings without the seed, as text: several seeds share it.
    """

    name: str
    seed: int
    front: Json
    met: Sequence[Json] = ()
    digest: str | None = None
    answers: Answers = field(default_factory=dict)
    identity: str = ""

    @property
    def metric(self) -> str:
        """Return the name of the task's metric."""
        return str(self.front.get("metric", "accuracy"))

    @property
    def points(self) -> list[Json]:
        """Return the points of the front."""
        return list(self.front["points"])


def read_entries(paths: Sequence[Path]) -> list[Entry]:
    """Read each path: a run directory, or the folder of one search of a run.

    Raises:
        StoreError: a path is no run, or has no finished search.
        ConfigError: fewer than two paths, or one path twice.
    """
    if len(paths) < 2:
        raise ConfigError(
            f"A comparison needs at least two runs; given: {len(paths)}. Name more run directories, or two searches of "
            "one run as RUN/searches/NAME."
        )
    searches = [_search_of(path) for path in paths]
    for i, (run, search) in enumerate(searches):
        if (run.resolve(), search) in [(r.resolve(), s) for r, s in searches[:i]]:
            raise ConfigError(f"{paths[i]} is given twice. Name each run once.")
    names = unique_names([_parts(path) for path in paths])
    return [_read(run, search, name) for (run, search), name in zip(searches, names, strict=True)]


def _parts(path: Path) -> list[str]:
    """Return the parts of a path; a search's folder and its run are one."""
    *parents, last = [part for part in path.resolve().parts if part != path.anchor]
    if _is_search(path):
        return [*parents[:-2], f"{parents[-2]}/{last}"]
    return [*parents, last]


def unique_names(paths: Sequence[Sequence[str]]) -> list[str]:
    """Return the shortest ends of paths, given by their parts, that tell all of them apart."""
    length = 1
    while True:
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names) or length > max(map(len, paths)):
            return names
        length += 1


def _is_search(path: Path) -> bool:
    return path.resolve().parent.name == "searches" and not (path / CONFIG).exists()


def _search_of(path: Path) -> tuple[Path, str]:
    """Return the run and the name of the search that a path means: the last finished one where it names none."""
    if _is_search(path):
        run, found = path.resolve().parent.parent, [path / FRONT]
    else:
        run, found = (
            path,
            sorted(
                path.glob(f"searches/*/{FRONT}"),
                key=lambda p: (int(p.parent.name.partition("-")[0] or 0), p.parent.name),
            ),
        )
    RunDirectory(run, read_only=True).close()  # says so where it is none
    if not found or not found[-1].is_file():
        raise StoreError(f"{path} has no finished search to compare. Run `qnas search {run}` to its end first.")
    return run, found[-1].parent.name


def _read(run: Path, search: str, name: str) -> Entry:
    with RunDirectory(run, read_only=True) as store:
        front = store.read_json(store.search_directory(search) / FRONT)
        if not front.get("points"):
            raise StoreError(f"The search {search} of {run} has no point on its front. Search with more --evaluations.")
        config = read_toml(run / CONFIG)
        settings = store.search_settings(search)
        metric = str(front.get("metric", "accuracy"))
        return Entry(
            name,
            int(front.get("seed", config.get("seed", 0))),
            front,
            [trial.metrics for _, _, trial in store.trials(search) if not trial.violation > 0],
            (store.read_json(run / "data.json") or {}).get("digest"),
            stored_answers(store, front["points"], metric, "test"),
            _identity(config, settings or front),
        )


def _identity(config: Json, settings: Json) -> str:
    """Return everything that decides a result but the seed. The search's settings may differ from the run's."""
    left_out = ("seed", "search")
    chosen = ("strategy", "options", "evaluations", "objectives", "constraints", "stage")
    identity: dict[str, Any] = {name: value for name, value in config.items() if name not in left_out}
    identity["search"] = {name: settings.get(name) for name in chosen}
    return json.dumps(identity, sort_keys=True, default=str)
