"""A run -> what its report is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qnas.kfold_said import read_kfolds
from qnas.report.answers import front_noise
from qnas.report.data import Json, ReportData
from qnas.retrained import read_retrained

if TYPE_CHECKING:
    from qnas.run import Run

LOOKS = 60  # looks inside that a report shows, spread over the training
T = TypeVar("T")


def report_data(run: Run) -> ReportData:
    """Read everything that a run has so far."""
    from qnas.alone import list_alone
    from qnas.exports import list_exports
    from qnas.insights import read_insights
    from qnas.rank import list_ranks

    store = run.store
    environment = store.read_json(store.path / "environment.json", {})
    fronts = run.fronts()
    trials = [{"search": search, "number": number + 1, **asdict(trial)} for search, number, trial in store.trials()]
    data = ReportData(
        config=run.config.model_dump(mode="json", exclude_none=True),
        environment={k: v for k, v in environment.items() if k != "command"},
        command=environment.get("command", ""),
        history=run.progress().history,
        trials=trials,
        front=fronts[-1] if fronts else {},
        exports=list_exports(store),
        timings=run.timings(),
        name=store.path.name,
        fronts=fronts,
        alone=[_without_answers(result) for result in list_alone(store.path)],
        retrained=[_without_answers(net) for net in read_retrained(store.path).get("nets", [])],
        ranks=[dict(comparison) for comparison in list_ranks(store.path)],
        inside=thinned(list(_looks([path.parent for path in run.stages.checkpoints()])), LOOKS),
        insights=read_insights(store.path),
        kfolds=read_kfolds(store.path),
    )
    if not fronts:
        return data
    ties, gap = front_noise(store, fronts[-1], data.points)
    return replace(data, ties=ties, gap=gap)


def _without_answers(result: Json) -> Json:
    return {name: value for name, value in result.items() if name != "correct"}


def _looks(folders: Sequence[Path]) -> Iterator[Json]:
    """Yield each look's first subnet: the largest, where the sampler draws a sandwich."""
    from qnas.records import read_records

    for folder in folders:
        for event in read_records(folder, "inside"):
            if event.get("subnets"):
                first: dict[str, Any] = event["subnets"][0]
                rest = {name: event.get(name) for name in ("stage", "number", "gradient_norms")}
                yield {**first, **rest}


def thinned(entries: list[T], most: int) -> list[T]:
    """Return at most ``most`` entries, evenly spread, the first and the last among them."""
    if len(entries) <= most:
        return entries
    return [entries[round(i * (len(entries) - 1) / (most - 1))] for i in range(most)]
