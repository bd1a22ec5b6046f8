"""Which subnet of a run, after which stage of its training, a user means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qnas.errors import StoreError
from qnas.space import Sample

if TYPE_CHECKING:
    from qnas.run import Run

EXTREMES = ("largest", "smallest")


@dataclass(frozen=True)
class Choice:
    """A subnet with the weights that it had after one stage."""

    sample: Sample
    stage: str


def find(run: Run, config: str | None, *, stage: str | None = None, search: str | None = None) -> Choice:
    """Return the subnet that the user means.

    Args:
        run: that holds it.
        config: a key or the beginning of one; ``largest`` or ``smallest``; ``None`` for the chosen point of the last
            search.
        stage: look only at this stage's searches; of ``largest`` and ``smallest``, the last stage by default.
        search: look only at this search.

    Raises:
        StoreError: there is no such trial, or more than one.
    """
    if stage is not None:
        run.stages.number(stage)  # says so where there is none
    if config in EXTREMES:
        space = run.stages.space(stage)
        name = run.stages.all()[run.stages.number(stage)].name
        return Choice(space.highest() if config == "largest" else space.lowest(), name)
    fronts = [f for f in run.fronts() if search in (None, f["search"]) and stage in (None, f["stage"]) and f["points"]]
    if config is None:
        if not fronts:
            of, flag = ("", "") if stage is None else (f" of stage {stage!r}", f" --stage {stage}")
            raise StoreError(
                f"{run.store.path} has no finished search{of} to choose from. "
                f"Run `qnas search {run.store.path}{flag}`, or name a subnet by --config KEY, largest or smallest."
            )
        front = fronts[-1]
        point = next(point for point in front["points"] if point["key"] == front["chosen"])
        return Choice(dict(point["sample"]), front["stage"])
    return _trial(run, config, stage)


def _trial(run: Run, config: str, stage: str | None) -> Choice:
    """Return the one subnet whose key begins so."""
    stages = {search: str(run.store.search_settings(search).get("stage")) for search in run.store.searches()}
    found: dict[tuple[str, str], Sample] = {}
    for search, _, trial in run.store.trials():
        if config and trial.key.startswith(config) and stage in (None, stages[search]):
            found[trial.key, stages[search]] = trial.sample
    if len({key for key, _ in found}) == 1 and len(found) > 1:
        raise StoreError(
            f"--config {config!r} was judged after more than one stage of {run.store.path}. Name one by --stage: "
            f"{', '.join(name for _, name in found)}."
        )
    if len(found) != 1:
        state = "is the beginning of several trials' keys" if found else "is no trial's key"
        raise StoreError(
            f"--config {config!r} {state} in {run.store.path}. Take one from the front's table or "
            f"`qnas report {run.store.path}`; largest and smallest are names, too."
        )
    (_, name), sample = next(iter(found.items()))
    return Choice(sample, name)


def front(run: Run, stage: str | None = None) -> list[Choice]:
    """Return the points of the last search's front, or of the last search of one stage.

    Raises:
        StoreError: no such search is finished.
    """
    find(run, None, stage=stage)
    last = [f for f in run.fronts() if stage in (None, f["stage"]) and f["points"]][-1]
    return [Choice(dict(point["sample"]), last["stage"]) for point in last["points"]]


def exported(run: Run) -> list[Choice]:
    """Return the subnets that were exported.

    Raises:
        StoreError: none was.
    """
    from qnas.exports import list_exports

    exports: list[dict[str, Any]] = list_exports(run.store)
    if not exports:
        raise StoreError(f"{run.store.path} holds no exported model. Run `qnas export {run.store.path}` first.")
    return [Choice(export["sample"], export["stage"]) for export in exports]
