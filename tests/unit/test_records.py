"""Records of training: whole epochs only, and the same file however often training was stopped."""

from __future__ import annotations

import pytest

from qnas.recorder import NullRecorder
from qnas.records import NAME, RecordFile, keep_records, read_records

STEPS = 3
STAGES = (("float", 2), ("quantized", 2))


class StopError(Exception):
    pass


def train(files, first=0, last=4, torn=None):
    """Record epochs ``first`` to ``last``; stop in the middle of epoch ``torn``."""
    number = 0
    for stage, epochs in STAGES:
        files.record("stage", {"name": stage, "epochs": epochs, "steps": STEPS})
        for epoch in range(epochs):
            for step in range(STEPS):
                if first <= number < last:
                    if number == torn and step == 1:
                        raise StopError
                    files.record("step", {"stage": stage, "epoch": number, "step": step, "losses": [number + step / 8]})
                    files.record("trial", {"number": 1})  # no event of training
            if first <= number < last:
                files.record("inside", {"stage": stage, "epoch": number, "step": STEPS - 1, "gradient_norms": {}})
                files.record("epoch", {"stage": stage, "epoch": epoch})
            number += 1


@pytest.fixture
def folders(tmp_path):
    return {name: tmp_path / f"{i:02d}-{name}" for i, (name, _) in enumerate(STAGES)}


@pytest.fixture
def whole(tmp_path):
    folders = {name: tmp_path / "whole" / name for name, _ in STAGES}
    train(RecordFile(folders))
    return contents(folders)


def contents(folders):
    return {name: (folder / NAME).read_bytes() for name, folder in folders.items() if (folder / NAME).is_file()}


def stage_of(epoch):
    return STAGES[0][0] if epoch < STAGES[0][1] else STAGES[1][0]


def test_steps_and_looks_inside_are_kept_by_stage(folders):
    train(RecordFile(folders))
    steps = list(read_records(folders["quantized"], "step"))
    assert [(s["epoch"], s["step"]) for s in steps] == [(e, s) for e in (2, 3) for s in range(STEPS)]
    assert steps[1] == {"stage": "quantized", "epoch": 2, "step": 1, "losses": [2.125]}
    assert [e["epoch"] for e in read_records(folders["float"], "inside")] == [0, 1]
    assert list(read_records(folders["float"], "epoch")) == []


def test_nothing_is_read_where_nothing_was_kept(tmp_path):
    assert list(read_records(tmp_path / "nowhere", "step")) == []


@pytest.mark.parametrize("stopped", range(4))
@pytest.mark.parametrize("checkpoint_lost", [False, True])
def test_a_run_that_was_stopped_leaves_the_same_file(folders, whole, stopped, checkpoint_lost):
    """StopError in the middle of an epoch; where the checkpoint is lost, its records were written and come again."""
    with pytest.raises(StopError):
        train(RecordFile(folders), torn=stopped)
    first = max(0, stopped - checkpoint_lost)
    files = RecordFile(folders)
    files.go_on(stage_of(first), first)
    train(files, first=first)
    assert contents(folders) == whole


@pytest.mark.parametrize("cut", [1, 10, 50])
def test_a_torn_last_line_is_dropped(folders, whole, cut):
    train(RecordFile(folders), last=4)
    path = folders["quantized"] / NAME
    path.write_bytes(path.read_bytes()[:-cut])
    assert sum(1 for _ in read_records(folders["quantized"], "step")) >= STEPS
    files = RecordFile(folders)
    files.go_on("quantized", 3)  # epoch 3's checkpoint did not stand
    train(files, first=3)
    assert contents(folders) == whole


def test_what_came_of_later_stages_is_dropped_and_what_came_before_stays(folders, whole):
    train(RecordFile(folders))
    RecordFile(folders).go_on("float", 1)
    found = contents(folders)
    assert list(found) == ["float"]
    assert whole["float"].startswith(found["float"])
    assert {step["epoch"] for step in read_records(folders["float"], "step")} == {0}


class Training:
    """What ``keep_records`` asks of a trainer."""

    def __init__(self, *, leader=True, finished=False, stage=0, epoch=0):
        from types import SimpleNamespace

        self.processes = SimpleNamespace(leader=leader)
        self.finished = finished
        self.progress = SimpleNamespace(stage=stage, epoch=epoch)
        self.stages = [SimpleNamespace(name=name, epochs=epochs) for name, epochs in STAGES]
        self.recorder = NullRecorder()


def test_a_trainer_goes_on_where_its_progress_stands(folders):
    train(RecordFile(folders))
    trainer = Training(stage=1, epoch=1)
    keep_records(trainer, list(folders.values()))
    assert {step["epoch"] for step in read_records(folders["quantized"], "step")} == {2}
    assert not isinstance(trainer.recorder, NullRecorder)


@pytest.mark.parametrize("state", [{"leader": False}, {"finished": True}])
def test_followers_and_finished_trainers_keep_nothing(folders, whole, state):
    train(RecordFile(folders))
    trainer = Training(**state)
    keep_records(trainer, list(folders.values()))
    assert isinstance(trainer.recorder, NullRecorder)
    assert contents(folders) == whole
