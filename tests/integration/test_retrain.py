"""Searched points trained again by themselves: a float search's net at fewer bits, a quantized front; deployed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from qnas import alone
from qnas.alone import AloneSettings, alone_directory, trained_roles
from qnas.cli import cli
from qnas.compare import compare_runs
from qnas.compare.fronts import supernet_passes
from qnas.config import StageConfig, load_config
from qnas.errors import QnasError, StoreError
from qnas.exports import list_exports
from qnas.report import report_data
from qnas.report.charts import chart_data
from qnas.retrain import at_bits, list_retrained
from qnas.run import Run
from qnas.statistics import unpack_correct
from qnas.train import Trainer

FLOAT = {"name": "float", "epochs": 1, "lr": 6e-3, "quantize": False}
QUANTIZED = {"name": "quantized", "epochs": 2, "lr": 3e-3}
TINY = {
    "threads": 1,
    "device": "cpu",
    "compile": False,
    "space": {"options": {"se": False, "act": "relu", "kernels": [3], "expansions": [3], "depths": [1]}},
    "quantization": {"w_bits": [2, 4], "a_bits": [2, 4], "granularity": "network"},
    "train": {"num_subnets": 2, "batch_size": 256, "stages": [FLOAT]},
    "evaluation": {"calibration_images": 64, "calibration_batch": 32},
    "search": {"evaluations": 2, "strategy": "random", "objectives": ["accuracy", "macs"]},
    "data": {"search_fraction": 0.3, "test_fraction": 0.3},
    "retrain": {"points": "chosen", "start": "supernet", "bits": [4, 2], "stages": [QUANTIZED]},
}
BOTH = {
    "train": {"stages": [FLOAT, {**QUANTIZED, "epochs": 1}]},
    "search": {"objectives": ["accuracy", "bitops"]},
    "retrain": {"points": "front", "start": "scratch", "bits": [], "stages": []},
}


class StopError(Exception):
    """The process ends here."""


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def qnas(*arguments):
    """Give a command; an error that ``main`` would print is returned as text."""
    done = CliRunner().invoke(cli, [str(a) for a in arguments])
    known = isinstance(done.exception, QnasError)
    assert done.exception is None or known or isinstance(done.exception, SystemExit), done.exception
    code = done.exception.exit_code if known else done.exit_code
    return SimpleNamespace(code=code, out=done.stdout, err=str(done.exception) if known else done.stderr)


@pytest.fixture(scope="module")
def searched(tmp_path_factory, registry):
    """A float supernet, searched."""
    path = tmp_path_factory.mktemp("searched") / "run"
    with Run.create(path, load_config(TINY), registry) as run:
        run.train()
        run.search()
    return path


@pytest.fixture(scope="module")
def finished(searched, tmp_path_factory, registry):
    """The same with its chosen net trained again at 4 and at 2 bits."""
    path = shutil.copytree(searched, tmp_path_factory.mktemp("finished") / "run")
    with Run.open(path, registry) as run:
        assert run.retrain() == list_retrained(run)
    return path


@pytest.fixture
def run(searched, tmp_path, registry):
    with Run.open(shutil.copytree(searched, tmp_path / "run"), registry) as run:
        yield run


@pytest.fixture
def done(finished, tmp_path, registry):
    with Run.open(shutil.copytree(finished, tmp_path / "run"), registry) as run:
        yield run


# --- what is trained ---------------------------------------------------------------------------------------------


def test_the_chosen_float_net_is_trained_once_at_each_bit_width(done):
    front = done.fronts()[0]
    chosen = next(p for p in front["points"] if p["key"] == front["chosen"])
    assert {v for k, v in chosen["sample"].items() if k.endswith("_bits")} == {32}
    nets = list_retrained(done)
    assert [net["bits"] for net in nets] == [4, 2]
    largest = sum(layer.macs for layer in done.space.layers(done.space.highest()))
    for net in nets:
        own = {k: net["bits"] if k in ("w_bits", "a_bits") else v for k, v in chosen["sample"].items()}
        assert net["sample"] == own == at_bits(done.space, chosen["sample"], net["bits"])
        assert net["key"] == done.space.key(own)
        assert net["searched_key"] == chosen["key"]
        layers = done.space.layers(own)
        assert net["metrics"]["test"]["bitops"] == sum(x.macs * x.w_bits * x.a_bits for x in layers)
        steps = 2 * (len(done.data.train) // 256)
        assert net["image_passes"] == pytest.approx(steps * 256 * sum(x.macs for x in layers) / largest)
        assert net["stages"] == [{"name": "quantized", "epochs": 2, "lr": 3e-3}]
        correct = unpack_correct(bytes.fromhex(net["correct"]["test"]), net["num_images"]["test"])
        assert float(correct.mean()) == net["metrics"]["test"]["accuracy"]
    stored = json.loads((done.store.path / "retrain.json").read_text())
    assert [net["id"] for net in stored["nets"]] == [net["id"] for net in nets]
    assert stored["hypervolume"]["reference"]["bitops"] == sum(
        x.macs * x.w_bits * x.a_bits for x in done.space.layers(done.space.highest())
    )


def test_it_starts_from_the_supernets_weights_and_steps_from_data(run, monkeypatch):
    monkeypatch.setattr(Trainer, "_epoch", lambda self, stage: None)  # the stage is entered, and no step done
    net = run.retrain()[0]
    before = load_file(run.trained_checkpoint())
    after = load_file(run.store.path / "alone" / net["id"] / "stages/00-quantized/checkpoint.safetensors")
    weights = [name for name in before if name.endswith(".weight")]
    assert weights
    assert all(torch.equal(before[name], after[name]) for name in weights)
    assert all(not before[name].any() for name in before if ".log_steps." in name)  # no stage had started them
    assert sum(bool(after[name].any()) for name in after if name.endswith("log_steps.4")) > 10


def test_quantizers_go_on_only_at_bit_widths_that_were_trained(run):
    float_stage, four = StageConfig(**FLOAT), StageConfig(name="four", epochs=1, lr=1.0, w_bits=(4,))
    space = run.space
    at_four, at_two = (space.pin(at_bits(space, space.highest(), bits)) for bits in (4, 2))
    assert trained_roles([float_stage], at_four) == ()
    assert trained_roles([float_stage, four], at_four) == ("weight", "activation")
    assert trained_roles([float_stage, four], at_two) == ("activation",)
    weights = StageConfig(name="weights", epochs=1, lr=1.0, roles=("weight",))
    assert trained_roles([weights], at_two) == ("weight",)


def test_another_search_of_the_same_run_changes_nothing(run):
    front = run.fronts()[0]
    other = load_config(TINY, {"search": {"strategy": "random", "evaluations": 1}})
    assert run.search(other)["search"] == "02-random"
    assert {net["search"] for net in run.retrain()} == {front["search"]} == {"01-random"}


def test_folders_keep_their_names():
    """What earlier versions trained is found: a field that came later is no part of the name where it is empty."""
    key, stage = "0123456789abcdef", StageConfig(**QUANTIZED)
    named = [
        (AloneSettings(stage="quantized"), f"alone/{key}-scratch-adbf6dbc"),
        (AloneSettings("supernet", 3, 0.5, 0.1, "4-bit"), f"alone/{key}-supernet-294474b2"),
    ]
    for settings, name in named:
        assert alone_directory(Path("run"), key, settings) == Path("run") / name
    longer = stage.model_copy(update={"epochs": 3})
    own = [AloneSettings(stage="quantized", own=stages) for stages in ((), (stage,), (longer,))]
    assert len({alone_directory(Path("run"), key, settings) for settings in own}) == 3


# --- stopped and gone on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "saved"), [(1, True), (2, False), (3, True), (4, False)])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(searched, finished, tmp_path, registry, monkeypatch, at, saved):
    path = shutil.copytree(searched, tmp_path / "run")
    count = 0
    save = alone.save_checkpoint

    def stopping(trainer, to):
        nonlocal count
        count += 1
        if saved or count < at:
            save(trainer, to)
        if count == at:
            raise StopError

    with Run.open(path, registry) as run:
        monkeypatch.setattr(alone, "save_checkpoint", stopping)
        with pytest.raises(StopError):
            run.retrain()
        monkeypatch.undo()
        assert list_retrained(run) == []
    with Run.open(path, registry) as run:
        run.retrain()
    assert files(path / "alone") == files(finished / "alone")
    assert (path / "retrain.json").read_bytes() == (finished / "retrain.json").read_bytes()


# --- deployed ----------------------------------------------------------------------------------------------------


def test_a_net_trained_alone_stands_where_a_stage_could(done):
    for net in list_retrained(done):
        stage = f"alone/{net['id']}"
        for split in ("search", "test"):
            evaluation = done.evaluate(net["sample"], split, stage)
            assert evaluation.metrics == net["metrics"][split]
            assert evaluation.packed().hex() == net["correct"][split]
        exported = done.export(net["sample"], stage)
        assert exported["stage"] == stage
        assert exported["onnx"] == f"exports/{net['id']}/model.onnx"
        verified = done.verify(net["sample"], stage)
        assert verified["passed"]
        assert verified["subnet_accuracy"] == net["metrics"]["test"]["accuracy"]
    assert [e["stage"].removeprefix("alone/") for e in list_exports(done.store)] == sorted(
        net["id"] for net in list_retrained(done)
    )


def test_commands_take_the_net_in_a_stages_place(done):
    done.close()
    path, net = done.store.path, list_retrained(done)[1]
    stage = ("--stage", f"alone/{net['id']}")
    shown = json.loads(qnas("evaluate", path, *stage, "--split", "test", "--json").out)
    assert (shown["key"], shown["stage"]) == (net["key"], stage[1])
    assert shown["metrics"] == net["metrics"]["test"]
    early = qnas("verify", path, *stage)
    assert early.code == 2
    assert f"Run `qnas export {path} --stage {stage[1]}` first" in early.err
    for flags in (("--config", net["key"][:4]), ("--all",)):
        (exported,) = json.loads(qnas("export", path, *stage, *flags, "--json").out)
        assert exported["stage"] == stage[1]
    assert qnas("verify", path, *stage).code == 0
    assert qnas("verify", path, "--all").code == 0
    assert qnas("evaluate", path, *stage, "--config", "ffff").code == 2


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("alone/../x", "names no net of"),
        ("alone/..", "names no net of"),
        ("alone/a/b", "names no net of"),
        ("/etc/passwd", "names no net of"),
        ("alone/0123456789abcdef-scratch-01234567", "does not exist. Train it by `qnas train-alone"),
        ("other", "does not exist. Allowed: float"),
    ],
)
def test_names_that_are_none_are_refused(done, stage, message):
    done.close()
    for command in ("evaluate", "export", "verify"):
        answer = qnas(command, done.store.path, "--stage", stage)
        assert answer.code == 2
        assert message in answer.err


def test_an_unfinished_or_damaged_net_is_refused(done):
    net = list_retrained(done)[0]
    result = done.store.path / "alone" / net["id"] / "result.json"
    value = json.loads(result.read_text())
    result.write_text(json.dumps({**value, "own": [{"name": "../x", "epochs": 1, "lr": 1.0}]}))
    with pytest.raises(StoreError, match="does not say how its net was trained"):
        done.stages.evaluator(f"alone/{net['id']}")
    result.unlink()
    with pytest.raises(StoreError, match="is not trained to its end"):
        done.stages.evaluator(f"alone/{net['id']}")
    with pytest.raises(StoreError, match=r"retrain.json does not fit.*qnas run --resume"):
        list_retrained(done)


# --- the whole job -----------------------------------------------------------------------------------------------


def test_qnas_run_deploys_the_retrained_nets_and_is_compared_by_them(searched, tmp_path, registry, monkeypatch):
    path = shutil.copytree(searched, tmp_path / "float")
    whole = json.loads(qnas("run", "--resume", path, "--json").out)
    nets = whole["retrained"]
    assert "verify" not in whole
    assert [net["verify"]["passed"] for net in nets] == [True, True]
    assert "correct" not in nets[0]
    assert sorted(p.name for p in (path / "exports").iterdir()) == sorted(net["id"] for net in nets)
    monkeypatch.setattr(Trainer, "run", None)  # the second time nothing is trained
    shown = qnas("run", "--resume", path, "-q").out
    assert "Searched points, trained again by themselves" in shown
    report = (path / "report.html").read_text()
    assert "2 verified exports of 2 nets trained again" in report
    with Run.open(path, registry) as run:
        drawn = chart_data(report_data(run))
    assert drawn["axes"] == ["accuracy", "bitops", None]
    assert [n["bits"] for n in drawn["retrained"]] == ["4", "2"]
    for net in nets:
        assert net["key"] in shown
        assert f"{net['metrics']['test']['accuracy']:.2%} ± {net['standard_error']['test']:.2%}" in shown
        assert f"{int(net['metrics']['test']['bitops']):,}" in shown
    monkeypatch.undo()

    with Run.create(tmp_path / "both", load_config(TINY, BOTH), registry) as run:
        run.train()
        front = run.search()
        (net, *_) = again = run.retrain()
        assert [n["searched_key"] for n in again] == [p["key"] for p in front["points"]]
        assert all(n["key"] == n["searched_key"] and n["bits"] is None for n in again)
        assert [s["name"] for s in net["stages"]] == ["float", "quantized"]
        own, supernets = run.export(net["sample"], f"alone/{net['id']}"), run.export(net["sample"], "quantized")
        assert own["key"] == supernets["key"]
        assert own["onnx"] != supernets["onnx"]
        passes = run.progress().image_passes
        data = report_data(run)
        assert data.export_of(net["key"])["stage"] == "quantized"
        drawn = chart_data(data)
        assert [n["key"] for n in drawn["retrained"]] == [n["key"] for n in again]
        at = [m["name"] for m in drawn["metrics"]].index("bitops")
        assert drawn["retrained"][0]["metrics"][at] == net["metrics"]["search"]["bitops"]
        assert drawn["retrained"][0]["test"] == net["metrics"]["test"]["accuracy"]
    assert supernet_passes(tmp_path / "both") == passes

    found = compare_runs([path, tmp_path / "both"], tmp_path / "compare")
    assert [o["name"] for o in found["objectives"]] == ["accuracy", "bitops"]
    first, second = found["runs"]
    assert {p["key"] for p in first["points"]} == {n["key"] for n in nets}
    assert {p["key"] for p in second["points"]} == {n["key"] for n in again}
    assert first["image_passes"] == pytest.approx(supernet_passes(path) + sum(n["image_passes"] for n in nets))
    assert second["image_passes"] == pytest.approx(passes + sum(n["image_passes"] for n in again))
    assert all(pair["paired"] for pair in found["pairs"])
    page = (tmp_path / "compare" / "compare.html").read_text()
    assert "Image passes" in page


@pytest.mark.slow
def test_two_processes_train_the_nets_together(searched, tmp_path):
    path = shutil.copytree(searched, tmp_path / "run")
    config = (path / "config.toml").read_text()
    assert config.count("devices = 1") == 1
    (path / "config.toml").write_text(config.replace("devices = 1", "devices = 2"))
    command = [sys.executable, "-m", "qnas", "run", "--resume", str(path), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=True)
    nets = json.loads(done.stdout)["retrained"]
    assert [net["bits"] for net in nets] == [4, 2]
    assert all(net["verify"]["passed"] for net in nets)


# --- what cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"retrain": {"bits": [3]}}, r"retrain.bits must be .* given: \[3\], allowed: \[2, 4\]"),
        ({"retrain": {"bits": [4, 4]}}, "different bit-widths"),
        ({"quantization": {"a_bits": [2]}}, r"given: \[4, 2\], allowed: \[2\]"),
        ({"retrain": {"bits": []}}, "Stage 'float' is searched in float.*Give retrain.bits"),
        ({"retrain": {"stages": []}}, "without quantizers for both.*by stage 'float'"),
        ({"retrain": {"stages": [{**QUANTIZED, "roles": ["weight"]}]}}, "without quantizers for both"),
        ({"retrain": {"stages": [QUANTIZED, QUANTIZED]}}, "must have different names"),
        ({"retrain": {"stages": [{**QUANTIZED, "w_bits": [4]}]}}, "cannot have w_bits"),
        ({"retrain": {"stages": [{**QUANTIZED, "inherit": True}]}}, "cannot have w_bits, a_bits or inherit"),
        ({"retrain": {"stages": [{**QUANTIZED, "calibrator": "nothing"}]}}, "'nothing'"),
        ({"retrain": {"start": "scratch", "stages": [{**QUANTIZED, "epochs": 0}]}}, "cannot be trained from scratch"),
        ({"retrain": {"points": "best"}}, "retrain.points cannot be 'best'"),
    ],
)
def test_mistakes_are_said_before_a_directory_is_made(registry, tmp_path, changes, message):
    with pytest.raises(QnasError, match=message):
        Run.create(tmp_path / "run", load_config(TINY, changes), registry)
    assert not (tmp_path / "run").exists()


def test_what_was_not_searched_is_not_trained_again(registry, tmp_path):
    with Run.create(tmp_path / "run", load_config(TINY), registry) as run:
        run.train()
        with pytest.raises(StoreError, match="no finished search of stage 'float'"):
            run.retrain()
        assert not (run.store.path / "alone").exists()
    config = load_config(TINY, {"retrain": {"points": "none"}})
    with Run.create(tmp_path / "none", config, registry) as run:
        assert run.retrain() == []
