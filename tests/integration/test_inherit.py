"""Bit inheritance on a finished run."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from qnas.cli import cli
from qnas.config import load_config
from qnas.errors import ConfigError, PluginError, StoreError
from qnas.inherit import InheritSettings, extended, inherit
from qnas.plugins import load_registry
from qnas.run import Run

TINY = {
    "space": {"options": {"kernels": [3], "expansions": [3], "depths": [1]}},
    "train": {"num_subnets": 2, "float_epochs": 1},
    "evaluation": {"calibration_images": 64, "calibration_batch": 32},
    "search": {"evaluations": 2, "strategy": "random"},
    "data": {"search_fraction": 0.3, "test_fraction": 0.3},
}


def stage(bits, **more):
    return {"name": f"{bits}-bit", "epochs": 1, "lr": 3e-3, "w_bits": [bits], "a_bits": [bits], **more}


def make(path, bits, stages, **quantization):
    quantization = {"w_bits": bits, "a_bits": bits, "granularity": "block", **quantization}
    config = load_config(TINY, {"quantization": quantization, "train": {"stages": stages}})
    return Run.create(path, config, load_registry())


FLOAT = {"name": "float", "epochs": 1, "lr": 6e-3, "quantize": False}


@pytest.fixture(scope="module")
def at_four(tmp_path_factory):
    """A finished run at 4 bits, searched."""
    path = tmp_path_factory.mktemp("inherit") / "run"
    with make(path, [4], [FLOAT, {"name": "quantized", "epochs": 1, "lr": 3e-3}]) as run:
        run.train()
        run.search()
    return path


def copied(path, tmp_path):
    import shutil

    target = tmp_path / "copy"
    shutil.copytree(path, target)
    return target


def test_equals_a_run_that_had_the_stages_from_the_beginning(at_four, tmp_path):
    path = copied(at_four, tmp_path)
    with Run.open(path, load_registry()) as run:
        for bits in (3, 2):
            assert inherit(run, InheritSettings(bits, bits)) == f"{bits}-bit"
            run.train()
        found = run.progress()
        last = run.trained_checkpoint()
    stages = [FLOAT, {**stage(4), "name": "quantized"}, stage(3, inherit=True), stage(2, inherit=True)]
    with make(tmp_path / "whole", [2, 3, 4], stages) as run:
        assert run.train() == found
        whole = run.trained_checkpoint()
    assert last.read_bytes() == whole.read_bytes()


def test_earlier_stages_stay_as_they_were(at_four, tmp_path):
    path = copied(at_four, tmp_path)
    with Run.open(path, load_registry()) as run:
        front = run.fronts()[0]
        points = {p["key"]: p["metrics"] for p in front["points"]}
        dump = run.store.canonical_dump()
        inherit(run, InheritSettings(3, 3))
        run.train()
        again = run.search(stage="quantized")  # nothing is judged again
        assert run.store.canonical_dump() == dump
        assert again == front
        evaluator = run.stages.evaluator("quantized")
        for point in front["points"]:
            assert evaluator.supernet.space.key(point["sample"]) == point["key"]
            assert evaluator.evaluate(point["sample"]).metrics == points[point["key"]]
        new = run.search()
        assert new["stage"] == "3-bit"
        bits = {v for p in new["points"] for k, v in p["sample"].items() if k.endswith("_bits")}
        assert bits == {3}


def test_the_new_stage_starts_from_the_steps_of_the_last(at_four, tmp_path):
    path = copied(at_four, tmp_path)
    with Run.open(path, load_registry()) as run:
        before = load_file(run.trained_checkpoint())
        inherit(run, InheritSettings(3, 2, epochs=0))
        run.train()
        assert run.config.train.stages[-1].name == "w3a2"
        after = load_file(run.trained_checkpoint())
    steps = [name for name in before if name.endswith("log_steps.4")]
    assert len(steps) == 20
    for name in steps:
        bits = 3 if "weight_quantizer" in name else 2
        ratio = torch.exp(after[f"{name[:-1]}{bits}"] - before[name])
        torch.testing.assert_close(ratio, torch.tensor(2.0 ** (4 - bits)))
    weights = [name for name in before if name.endswith(".weight")]
    assert all(torch.equal(before[name], after[name]) for name in weights)


def test_the_command_goes_on_where_it_was_stopped(at_four, tmp_path, monkeypatch):
    path = copied(at_four, tmp_path)
    command = ["inherit", str(path), "--w-bits", "3", "--a-bits", "3", "--json"]
    with monkeypatch.context() as patch:
        patch.setattr("qnas.train.Trainer.run", lambda self, save: (_ for _ in ()).throw(KeyboardInterrupt))
        assert CliRunner().invoke(cli, command).exit_code == 130
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value["stage"] == "3-bit"
    assert [entry["stage"] for entry in value["history"]] == ["float", "quantized", "3-bit"]
    again = CliRunner().invoke(cli, command)
    assert json.loads(again.stdout) == value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (InheritSettings(5, 5), "--w-bits 5 cannot be inherited: the last stage trains 4 bits"),
        (InheritSettings(1), "down to 2"),
        (InheritSettings(4, 4), "already"),
        (InheritSettings(), "already"),
        (InheritSettings(3, 3, name="float"), "has a stage 'float' already"),
        (InheritSettings(3, 3, name="a b"), "pattern"),
    ],
)
def test_refuses(at_four, settings, message):
    with Run.open(at_four, load_registry()) as run:
        config = run.config
        before = (at_four / "config.toml").read_bytes()
        with pytest.raises(ConfigError, match=message):
            inherit(run, settings)
        assert (at_four / "config.toml").read_bytes() == before
        assert run.config is config


def test_refuses_what_is_not_trained_or_not_quantized(tmp_path):
    with make(tmp_path / "a", [4], [FLOAT, stage(4)]) as run, pytest.raises(StoreError, match="not trained to the end"):
        inherit(run, InheritSettings(3))
    config = load_config(TINY, {"train": {"stages": [FLOAT]}})
    with pytest.raises(ConfigError, match="trains no quantizers"):
        extended(config, InheritSettings(3))


def test_refuses_a_quantizer_without_a_rule(at_four, monkeypatch):
    from qnas.nn.quantizer import Quantizer
    from qnas_plugins.quantizers.lsq import LSQ

    with Run.open(at_four, load_registry()) as run:
        monkeypatch.setattr(LSQ, "inherit", Quantizer.inherit)
        with pytest.raises(PluginError, match="no rule"):
            inherit(run, InheritSettings(3, 3))


def test_a_list_of_searched_stages_gets_the_new_one():
    stages = [FLOAT, stage(4)]
    config = load_config(TINY, {"train": {"stages": stages}, "search": {"stages": ["4-bit"]}})
    found = extended(config, InheritSettings(3, 3))
    assert found.search.stages == ("4-bit", "3-bit")
    assert found.quantization.w_bits == (2, 3, 4)  # of the defaults; the stages say what is trained
    assert found.train.stages[0].w_bits == (2, 3, 4)
