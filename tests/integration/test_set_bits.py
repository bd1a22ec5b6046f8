"""``qnas set-bits`` and ``qnas predictor`` as a user calls them, on a tiny trained run."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

from qnas.cli import cli
from qnas.errors import QnasError

SMALL = (
    *("--space", "resnet20", "--space-option", "elastic=false", "--space-option", "width=0.25"),
    *("--quantizer", "multiquant", "--w-bits", "2,4,8", "--a-bits", "2,4,8", "--bits-granularity", "layer"),
    *("--sampler", "lrh", "--supervision", "adaptive-label", "--float-epochs", "1", "--epochs", "2"),
    *("--batch-size", "256", "--threads", "1", "--device", "cpu", "-q"),
)


def qnas(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("bits") / "run"
    assert qnas("train", *SMALL, "--out", path).exit_code == 0
    return path


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_any_bits_are_judged_exported_and_verified(run):
    for flags in (("--w-bits", "2", "--a-bits", "2"), ("--a-bits", "4", "--layer", "stage3.*=2/8")):
        done = qnas("set-bits", run, *flags, "--json", "-q")
        found = json.loads(done.stdout)
        assert found["verify"]["passed"]
        assert found["verify"]["subnet_accuracy"] == found["metrics"]["test"]["accuracy"]
        assert (run / found["export"]["onnx"]).is_file()
    again = json.loads(qnas("set-bits", run, *flags, "--json", "-q", "--no-export").stdout)
    assert again["metrics"] == found["metrics"]
    assert "export" not in again


def test_the_table_names_every_layer(run):
    out = qnas("set-bits", run, "--w-bits", "4", "--no-export", "-q").stdout
    assert "stage1.block1.conv1" in out
    assert "accuracy, test" in out


@pytest.mark.parametrize("flags", [("--w-bits", "3"), ("--layer", "stage9.*=2"), ("--config", "nothing")])
def test_mistakes_change_nothing(run, flags):
    before = sorted(p.name for p in run.rglob("*"))
    with pytest.raises(QnasError):
        qnas("set-bits", run, *flags, "-q")
    assert set(before) >= {p.name for p in run.rglob("*")} - {"trials.sqlite"}


def test_a_predictor_is_built_fitted_scored_and_searched_on(run):
    assert (
        "Judged: 12 subnets"
        in qnas("predictor", "build", run, "--samples", "12", "--sampler", "monte-carlo", "-q").stdout
    )
    fitted = json.loads(qnas("predictor", "fit", run, "--set", "options.epochs=10", "--json", "-q").stdout)
    assert fitted["options"] == {"epochs": 10}
    said = qnas("predictor", "score", run, "-q").stdout
    assert "Kendall tau" in said
    assert "encoded samples a second" in said
    found = json.loads(qnas("predictor", "score", run, "--json", "-q").stdout)
    assert found["score"] == fitted["score"]
    out = qnas("search", run, "--predictor", "mlp", "--evaluations", "40", "--measured", "3", "-q").stdout
    assert "Searched on 40 predictions of mlp" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("build", "--stage", "other"), "finished training stage"),
        (("build", "--sampler", "monte-carl"), "monte-carlo"),
        (("build", "--set", "options.epoch=1"), "epochs"),
        (("fit", "--predictor", "mlq"), "mlp"),
    ],
)
def test_mistakes_are_named(run, arguments, said):
    command, *flags = arguments
    if command == "fit" or "options.epoch=1" in flags:
        qnas("predictor", "build", run, "--samples", "10", "-q")
        command = "fit"
    with pytest.raises(QnasError, match=said):
        qnas("predictor", command, run, *flags, "-q")
