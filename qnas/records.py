"""Events of training as JSON lines beside the checkpoints: what figures are drawn from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qnas.files import write_text
from qnas.recorder import Recorders
from qnas.train import Trainer

EVENTS = ("step", "inside")
NAME = "records.jsonl"


class RecordFile:
    """Keeps the ``step`` and ``inside`` events of a stage in ``records.jsonl``.

    An epoch's lines are written when the epoch ends, before its checkpoint. A run that goes on drops the lines of the
    epochs that it trains again, so a run that was killed leaves the same file.

    Args:
        folders: of the stages, by name.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)
        self._lines: list[str] = []

    def record(self, event: str, values: Mapping[str, Any]) -> None:
        """Take note of a step; write at the end of an epoch."""
        if event in EVENTS:
            self._lines.append(json.dumps({"event": event, **values}, separators=(",", ":")))
        elif event == "stage":
            self._lines = []
        elif event == "epoch":
            path = self.folders[values["stage"]] / NAME
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in self._lines)
                file.flush()
                os.fsync(file.fileno())  # the checkpoint that follows stands for these lines, too
            self._lines = []

    def go_on(self, stage: str, first_epoch: int) -> None:
        """Drop what an interrupted process wrote of epochs that come again.

        Args:
            stage: the one that training goes on with.
            first_epoch: the first epoch that comes again, counted over all stages as in ``step`` events.
        """
        later = list(self.folders)[list(self.folders).index(stage) :]
        for name in later:
            path = self.folders[name] / NAME
            if not path.is_file():
                continue
            kept = [line for line in _lines(path) if _epoch(line) < first_epoch]
            if kept:
                write_text(path, "".join(kept))
            else:
                path.unlink()


def keep_records(trainer: Trainer, folders: Sequence[Path]) -> None:
    """Let a trainer that is about to start, or to go on, keep its events; in the leader alone.

    Args:
        folders: of its stages, in order.
    """
    if not trainer.processes.leader or trainer.finished:
        return
    progress = trainer.progress
    files = RecordFile({stage.name: folder for stage, folder in zip(trainer.stages, folders, strict=True)})
    first = sum(stage.epochs for stage in trainer.stages[: progress.stage]) + progress.epoch
    files.go_on(trainer.stages[progress.stage].name, first)
    trainer.recorder = Recorders(trainer.recorder, files)


def read_records(folder: Path, event: str) -> Iterator[dict[str, Any]]:
    """Yield the values of one kind of event of a stage, in order; nothing where none were kept."""
    path = folder / NAME
    for line in _lines(path) if path.is_file() else ():
        values = json.loads(line)
        if values.pop("event") == event:
            yield values


def _lines(path: Path) -> Iterator[str]:
    """Yield the whole lines of a file: a process may have been killed in the middle of the last."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield line


def _epoch(line: str) -> int:
    return int(json.loads(line)["epoch"])
