"""Events for TensorBoard can be read back by it; without the package the flag is refused."""

from __future__ import annotations

import sys

import pytest

from qnas.errors import ConfigError
from qnas.tensorboard import FOLDER, TensorBoardRecorder, load_writer

INSIDE = {
    "stage": "float",
    "epoch": 0,
    "number": 2,
    "step": 1,
    "subnets": [
        {"key": "a", "steps": {"stem.weight": 0.5}, "clip_ratios": {"stem.weight": 0.25}, "bn_std": {"stem": 1.5}}
    ],
    "gradient_norms": {"stem": 3.0},
}


@pytest.fixture
def scalars(tmp_path):
    """What TensorBoard reads of a few events: (step, value) by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder = TensorBoardRecorder(tmp_path)
    recorder.record("phase", {"name": "train", "state": "start"})
    for number, losses in ((1, [2.0, 3.0]), (2, [1.0, 1.5])):
        values = {"stage": "float", "epoch": 0, "number": number, "step": number - 1, "losses": losses, "lr": 0.25}
        recorder.record("step", {**values, "gradient_norm": 4.0, "clip_ratio": 0.5})
    recorder.record("inside", INSIDE)
    recorder.record("epoch", {"stage": "float"})
    recorder.record("trial", {"number": 7, "key": "a", "metrics": {"accuracy": 0.75, "bitops": 1000}, "cached": False})
    recorder.record("phase", {"name": "train", "state": "end", "seconds": 1.0})
    recorder.close()
    read = EventAccumulator(str(tmp_path / FOLDER))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_events_are_read_back(scalars):
    assert scalars["loss/subnet 0"] == [(1, 2.0), (2, 1.0)]
    assert scalars["loss/subnet 1"] == [(1, 3.0), (2, 1.5)]
    assert scalars["train/lr"] == [(1, 0.25), (2, 0.25)]
    assert scalars["train/clip_ratio"] == [(1, 0.5), (2, 0.5)]
    assert scalars["steps/stem.weight/subnet 0"] == [(2, 0.5)]
    assert scalars["clip_ratios/stem.weight/subnet 0"] == [(2, 0.25)]
    assert scalars["bn_std/stem/subnet 0"] == [(2, 1.5)]
    assert scalars["gradient_norms/stem"] == [(2, 3.0)]
    assert scalars["search/accuracy"] == [(7, 0.75)]
    assert scalars["search/bitops"] == [(7, 1000.0)]


def test_without_the_package_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for make in (load_writer, lambda: TensorBoardRecorder(tmp_path)):
        with pytest.raises(ConfigError, match=r"--tensorboard needs the package tensorboard.*pip install"):
            make()
    assert not list(tmp_path.iterdir())
