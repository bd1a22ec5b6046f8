"""What is trained when a subnet is trained by itself: stages, folders, and the refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from qnas.alone import AloneSettings, alone_directory
from qnas.cli.resolve import alone_settings
from qnas.config import load_config
from qnas.errors import ConfigError

STAGES = (
    {"name": "float", "epochs": 3, "lr": 0.1, "quantize": False},
    {"name": "eight", "epochs": 10, "lr": 0.02, "w_bits": (4,), "a_bits": (4,)},
    {"name": "low", "epochs": 5, "lr": 0.01, "inherit": True, "calibrator": "mse"},
)


def config(*stages, **train):
    return load_config({"train": {"stages": stages, **train}})


def test_from_scratch_all_stages_come_again_at_the_subnets_own_bits():
    found = AloneSettings().stages(config(*STAGES))
    assert [(s.name, s.epochs, s.lr) for s in found] == [("float", 3, 0.1), ("eight", 10, 0.02), ("low", 5, 0.01)]
    assert all(s.w_bits == s.a_bits == () and not s.inherit for s in found)
    assert [s.quantize for s in found] == [False, True, True]
    assert found[2].calibrator == "mse"


def test_from_the_supernet_the_last_stage_comes_again_and_keeps_the_ranges_it_learned():
    (found,) = AloneSettings("supernet").stages(config(*STAGES))
    assert (found.name, found.epochs, found.calibrator, found.inherit) == ("low", 5, None, False)


def test_ranges_that_are_calibrated_and_not_trained_are_calibrated_for_the_subnet():
    (found,) = AloneSettings("supernet").stages(config(STAGES[0], {**STAGES[2], "epochs": 0}))
    assert (found.epochs, found.calibrator) == (0, "mse")


@pytest.mark.parametrize(
    ("budget", "epochs"),
    [(1.0, [3, 10, 5]), (2.0, [6, 20, 10]), (0.5, [2, 5, 3]), (0.01, [1, 1, 1]), (1.1, [4, 11, 6])],
)
def test_the_budget_multiplies_epochs_and_rounds_up(budget, epochs):
    assert [stage.epochs for stage in AloneSettings(budget=budget).stages(config(*STAGES))] == epochs


def test_a_budget_of_whole_epochs_is_not_rounded_up():
    assert 1.1 * 50 > 55
    (stage,) = AloneSettings(budget=1.1).stages(config({**STAGES[0], "epochs": 50}))
    assert stage.epochs == 55


def test_a_learning_rate_is_that_of_all_stages():
    assert [stage.lr for stage in AloneSettings(lr=0.5).stages(config(*STAGES))] == [0.5] * 3


def test_nothing_to_train_from_scratch_is_an_error():
    nothing = config({**STAGES[2], "epochs": 0}, init="weights.safetensors")
    with pytest.raises(ConfigError, match=r"all epochs are 0.*--from supernet"):
        AloneSettings().stages(nothing)
    assert len(AloneSettings("supernet").stages(nothing)) == 1


def test_every_setting_and_subnet_has_a_folder_of_its_own():
    settings = [
        AloneSettings(),
        AloneSettings("supernet"),
        AloneSettings(seed=1),
        AloneSettings(budget=2.0),
        AloneSettings(lr=0.1),
    ]
    folders = {alone_directory(Path("run"), key, s) for s in settings for key in ("a" * 16, "b" * 16)}
    assert len(folders) == 10
    assert all(folder.parent == Path("run/alone") for folder in folders)
    assert alone_directory(Path("run"), "a" * 16, AloneSettings()) in folders


def test_flags_become_settings():
    run = config(*STAGES).model_copy(update={"seed": 7})
    flags = {"start": "supernet", "budget": 0.5, "lr": None, "seed": None}
    assert alone_settings(run, flags) == AloneSettings("supernet", 7, 0.5, None, "low")
    assert alone_settings(run, {**flags, "seed": 0, "lr": 0.1}) == AloneSettings("supernet", 0, 0.5, 0.1, "low")
    for wrong in ({"budget": 0.0}, {"budget": -1.0}, {"lr": 0.0}, {"lr": -0.1}):
        with pytest.raises(ConfigError, match="--budget and --lr must be over 0"):
            alone_settings(run, {**flags, **wrong})
