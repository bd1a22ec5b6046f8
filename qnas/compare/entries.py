"""Runs -> what a comparison needs of them. Reading changes nothing and waits for nobody."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qnas.compare.fronts import answers_of_nets, front_of_nets, joint_front, supernet_passes
from qnas.config import read_toml
from qnas.errors import ConfigError, StoreError
from qnas.report.answers import Answers, stored_answers
from qnas.report.data import Json
from qnas.retrained import FILE as NETS
from qnas.retrained import read_retrained
from qnas.store import CONFIG, RunDirectory

FRONT = "front.json"


@dataclass(frozen=True)
class Entry:
    """What a run found: by one search, by those of several stages together, or its nets that were trained again.

    Attributes:
        name: unique among those compared.
        seed: of the run.
        front: what ``front.json`` holds, or the same of several searches or of nets; nets have no ``objectives``.
        met: metrics of the searches' trials that meet their constraints.
        digest: of the images of all splits; equal digests, equal test images in the same order.
        answers: of the front's points on the test split.
        identity: the configuration and the search's settings without the seed, as text: several seeds share it.
        image_passes: images times MACs that training took, in units of the run's largest subnet: of the supernet and,
            where they are compared, of the nets that were trained again.
    """

    name: str
    seed: int
    front: Json
    met: Sequence[Json] = ()
    digest: str | None = None
    answers: Answers = field(default_factory=dict)
    identity: str = ""
    image_passes: float | None = None

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

    A run stands for the nets that it trained again ([retrain]), where it did; else for the last searches of all stages
    that it searches, together; else for its last finished search.

    Raises:
        StoreError: a path is no run, or has no finished search.
        ConfigError: fewer than two paths, or one path twice.
    """
    if len(paths) < 2:
        raise ConfigError(
            f"A comparison needs at least two runs; given: {len(paths)}. Name more run directories, or two searches of "
            "one run as RUN/searches/NAME."
        )
    meant = [_meaning(path) for path in paths]
    for i, (run, searches) in enumerate(meant):
        if (run.resolve(), searches) in [(r.resolve(), s) for r, s in meant[:i]]:
            raise ConfigError(f"{paths[i]} is given twice. Name each run once.")
    names = unique_names([_parts(path) for path in paths])
    return [_read(run, searches, name) for (run, searches), name in zip(meant, names, strict=True)]


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


def _meaning(path: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the run that a path names and the searches in it that are meant; none for its nets trained again.

    Raises:
        StoreError: it is no run, or a search that is meant is not finished.
    """
    run = path.resolve().parent.parent if _is_search(path) else path
    RunDirectory(run, read_only=True).close()  # says so where it is none
    if _is_search(path):
        found = [path / FRONT] if (path / FRONT).is_file() else []
    else:
        config = read_toml(run / CONFIG)
        if (config.get("retrain") or {}).get("points", "none") != "none" and (run / NETS).is_file():
            return run, ()
        found = sorted(
            path.glob(f"searches/*/{FRONT}"),
            key=lambda p: (int(p.parent.name.partition("-")[0] or 0), p.parent.name),
        )
        stages = (config.get("search") or {}).get("stages") or ()
        if len(stages) > 1 and found:
            return run, _last_of_each(run, stages, found)
    if not found:
        raise StoreError(f"{path} has no finished search to compare. Run `qnas search {run}` to its end first.")
    return run, (found[-1].parent.name,)


def _last_of_each(run: Path, stages: Sequence[str], found: Sequence[Path]) -> tuple[str, ...]:
    """Return the last search of every stage that the run searches."""
    last = {json.loads(path.read_text(encoding="utf-8")).get("stage"): path.parent.name for path in found}
    missing = [stage for stage in stages if stage not in last]
    if missing:
        raise StoreError(
            f"{run} searches the stages {', '.join(stages)} and has not finished that of {missing[0]}. Go on with "
            f"`qnas run --resume {run}`, or compare one search: {run / 'searches' / list(last.values())[-1]}."
        )
    return tuple(last[stage] for stage in stages)


def _read(run: Path, searches: Sequence[str], name: str) -> Entry:
    with RunDirectory(run, read_only=True) as store:
        config = read_toml(run / CONFIG)
        digest = (store.read_json(run / "data.json") or {}).get("digest")
        passes = supernet_passes(run)
        if not searches:
            nets = read_retrained(run)
            fronts = [
                store.read_json(store.search_directory(search) / FRONT, {})
                for search in dict.fromkeys(str(net["search"]) for net in nets["nets"])
            ]
            front, own = front_of_nets(run, nets, fronts), sum(net["image_passes"] for net in nets["nets"])
            identity = _identity(config, [{**(config.get("search") or {}), "retrained": True}])
            seed, answers = int(config.get("seed", 0)), answers_of_nets(nets)
            return Entry(name, seed, front, (), digest, answers, identity, None if passes is None else passes + own)
        fronts = [store.read_json(store.search_directory(search) / FRONT) for search in searches]
        for search, front in zip(searches, fronts, strict=True):
            if not front.get("points"):
                raise StoreError(
                    f"The search {search} of {run} has no point on its front. Search with more --evaluations."
                )
        front = joint_front(run, fronts)
        settings = [store.search_settings(search) or front for search, front in zip(searches, fronts, strict=True)]
        metric = str(front.get("metric", "accuracy"))
        return Entry(
            name,
            int(front.get("seed", config.get("seed", 0))),
            front,
            [trial.metrics for search in searches for _, _, trial in store.trials(search) if not trial.violation > 0],
            digest,
            stored_answers(store, front["points"], metric, "test"),
            _identity(config, settings),
            passes,
        )


def _identity(config: Json, settings: Sequence[Json]) -> str:
    """Return everything that decides a result but the seed. The searches' settings may differ from the run's."""
    left_out = ("seed", "search")
    chosen = ("strategy", "options", "evaluations", "objectives", "constraints", "stage", "stages", "retrained")
    identity: dict[str, Any] = {name: value for name, value in config.items() if name not in left_out}
    identity["search"] = [{name: one.get(name) for name in chosen} for one in settings]
    return json.dumps(identity, sort_keys=True, default=str)
