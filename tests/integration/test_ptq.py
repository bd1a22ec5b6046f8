"""Post-training quantization: the recipe trains a float network, then sets ranges and trains nothing."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from qnas.cli import main

TINY = (
    *("--batch-size", "256", "--set", "train.num_subnets=3", "--space-option", "depths=1,2"),
    *("--space-option", "kernels=[3]", "--no-se", "--act", "relu", "--bits-granularity", "network", "--threads", "1"),
    *("--device", "cpu", "--evaluations", "4", "--strategy-option", "population=4", "--quiet"),
)
FLOAT = "stages/00-float/checkpoint.safetensors"


@pytest.fixture(scope="module")
def qnas():
    def call(*arguments):
        import contextlib
        import io

        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setattr(sys, "argv", ["qnas", *map(str, arguments)])
            with pytest.raises(SystemExit) as stop:
                main()
        assert "Traceback" not in err.getvalue()
        return SimpleNamespace(code=int(stop.value.code or 0), out=out.getvalue(), err=err.getvalue())

    return call


@pytest.fixture(scope="module")
def recipe(qnas, tmp_path_factory):
    """A run of the recipe with one float epoch, and what the command printed as JSON."""
    path = tmp_path_factory.mktemp("ptq") / "run"
    answer = qnas("run", "--recipe", "ptq", "--float-epochs", "1", "--out", path, *TINY, "--json")
    assert answer.code == 0, answer.err
    return path, json.loads(answer.out)


def tensors(path):
    """Weights by name, without the statistics that any pass through the net follows; and quantizers' tensors."""
    found = {name: t for name, t in load_file(path).items() if name.startswith("model.")}
    quantizers = {name for name in found if "quantizer." in name}
    statistics = {name for name in found if ".bn.mean" in name or ".bn.var" in name}
    weights = {name: t for name, t in found.items() if name not in quantizers | statistics}
    return weights, {name: found[name] for name in quantizers}


def test_the_recipe_verifies_and_reports(recipe):
    path, result = recipe
    assert result["verify"]["passed"]
    assert (path / "report.html").is_file()
    bits = {layer["w_bits"] for point in result["front"]["points"] for layer in point["layers"]}
    assert bits <= {4, 6, 8}


def test_its_second_stage_changes_quantizers_alone(recipe):
    path, _ = recipe
    before, after = (tensors(path / name) for name in (FLOAT, "stages/01-quantized/checkpoint.safetensors"))
    assert before[0].keys() == after[0].keys()
    assert len(before[0]) > 20
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    changed = [name for name in after[1] if not torch.equal(before[1][name], after[1][name])]
    assert len(changed) > len(after[1]) / 4
    assert not (path / "stages/01-quantized/records.jsonl").exists()


def test_a_trained_float_net_is_quantized_without_training(qnas, recipe, tmp_path):
    source, wanted = recipe
    arguments = ("--recipe", "ptq", "--float-epochs", "0", "--init", source / FLOAT)
    done = qnas("run", *arguments, "--out", tmp_path / "run", *TINY, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["verify"]["passed"]
    # The same weights and images give the same ranges, so the same subnets answer the same.
    assert result["front"]["points"] == wanted["front"]["points"]
    assert (tmp_path / "run/report.html").is_file()
    checkpoints = (source / FLOAT, tmp_path / "run/stages/00-quantized/checkpoint.safetensors")
    weights, ours = (tensors(path)[0] for path in checkpoints)
    assert all(torch.equal(weights[name], ours[name]) for name in weights)


def test_training_alone_without_epochs_is_said(qnas, recipe, tmp_path):
    arguments = ("--recipe", "ptq", "--float-epochs", "0", "--init", recipe[0] / FLOAT, "--out", tmp_path / "run")
    trained = qnas("train", *arguments, *TINY)
    assert trained.code == 0, trained.err
    assert trained.out.splitlines() == [f"Trained: {tmp_path / 'run'}", f"Next: qnas search {tmp_path / 'run'}"]
    alone = qnas("train-alone", tmp_path / "run", "--config", "largest", "--quiet")
    assert alone.code == 2
    assert "Start from its weights: --from supernet" in alone.err


def test_nothing_to_train_and_no_weights_is_refused(qnas, tmp_path):
    answer = qnas("run", "--recipe", "ptq", "--float-epochs", "0", "--out", tmp_path / "run", *TINY)
    assert answer.code == 2
    assert "No stage trains (all epochs are 0)" in answer.err
    assert "--init" in answer.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["minmax", "percentile", "entropy"])
def test_every_calibrator_can_set_the_ranges(qnas, recipe, tmp_path, name):
    arguments = ("--recipe", "ptq", "--float-epochs", "0", "--init", recipe[0] / FLOAT, "--calibrator", name)
    assert qnas("train", *arguments, "--out", tmp_path / "run", *TINY).code == 0
    file = "checkpoint.safetensors"
    ours = tensors(tmp_path / "run/stages/00-quantized" / file)[1]
    mse = tensors(recipe[0] / "stages/01-quantized" / file)[1]
    assert any(not torch.equal(ours[key], mse[key]) for key in ours)


@pytest.mark.parametrize(
    ("name", "message"),
    [("mean", "'mean' does not exist"), ("bn", "Calibrator 'bn' adjusts subnets before they are judged")],
)
def test_calibrators_that_set_no_ranges_are_refused(qnas, tmp_path, name, message):
    answer = qnas("train", "--recipe", "ptq", "--calibrator", name, "--out", tmp_path / "run", *TINY)
    assert answer.code == 2
    assert message in answer.err
    assert not (tmp_path / "run").exists()
