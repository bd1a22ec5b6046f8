"""Finetuning of a searched net: what is frozen, where its statistics start, how it is judged, deployed and reported."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from qnas import alone
from qnas.cli import console
from qnas.config import load_config
from qnas.errors import QnasError
from qnas.nn.batchnorm import recalibrate
from qnas.nn.subnet import SubnetLayer
from qnas.report import report_data, write_report
from qnas.retrain import list_retrained
from qnas.run import Run
from qnas.statistics import paired, unpack_correct

TINY = {
    "threads": 1,
    "device": "cpu",
    "compile": False,
    "space": {"options": {"se": False, "act": "relu", "kernels": [3, 5], "expansions": [3], "depths": [1]}},
    "quantization": {"w_bits": [2, 4], "a_bits": [2, 4], "granularity": "network"},
    "train": {"num_subnets": 2, "batch_size": 256, "float_epochs": 1, "epochs": 1, "lr": 0.01},
    "evaluation": {"calibration_images": 64, "calibration_batch": 32},
    "search": {"evaluations": 3, "strategy": "random", "objectives": ["accuracy", "bitops"]},
    "data": {"search_fraction": 0.3, "test_fraction": 0.3},
}


def tuning(parameters="norms", epochs=2, points="chosen", **stage):
    stages = [{"name": "tune", "epochs": epochs, "lr": 4e-3, "parameters": parameters, **stage}]
    return {"retrain": {"points": points, "start": "supernet", "stages": stages}}


class StopError(Exception):
    """The process ends here."""


@pytest.fixture(scope="module")
def searched(tmp_path_factory, registry):
    """A quantized supernet, searched; its configuration asks for finetuning."""
    path = tmp_path_factory.mktemp("searched") / "run"
    with Run.create(path, load_config(TINY, tuning()), registry) as run:
        run.train()
        run.search()
    return path


@pytest.fixture
def open_run(searched, tmp_path, registry):
    """Returns a function that opens a copy of the run with another [retrain]."""

    def make(name="run", **settings):
        path = shutil.copytree(searched, tmp_path / name)
        config = load_config(TINY, tuning(**settings), {"evaluation": {"calibrators": ["bn"]}})
        (path / "config.toml").write_text(config.to_toml())
        return Run.open(path, registry)

    return make


def tensors(run, net, stage="00-tune"):
    return load_file(run.store.path / "alone" / net["id"] / f"stages/{stage}/checkpoint.safetensors")


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- what is trained ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", ["norms", "biases"])
def test_all_but_norms_and_clips_stay_as_they_were(open_run, registry, monkeypatch, parameters):
    lsq = registry.load("quantizer", "lsq")  # whose activation steps stand for clip values here
    monkeypatch.setattr(lsq, "clips", lambda self: self.parameters() if self.site.role == "activation" else ())
    with open_run(parameters=parameters) as run:
        supernet = files(run.store.path / "stages")
        before = load_file(run.trained_checkpoint())
        (net,) = run.retrain()
        after = tensors(run, net)
        assert files(run.store.path / "stages") == supernet
        names = {q.site.name: q for q in run.stages.supernet().quantizers()}
        assert names
    changed = {name for name, value in before.items() if name in after and not torch.equal(value, after[name])}
    kinds = {name.rpartition(".bn.")[2] if ".bn." in name else name.rpartition(".")[0] for name in changed}
    statistics = {"mean0", "var0"}
    gammas = {"weights.0"} if parameters == "norms" else set()
    tuned = statistics | gammas | {"biases.0"}
    assert {kind for kind in kinds if "log_steps" not in kind} == tuned
    clips = [name for name in changed if "log_steps" in name]
    assert clips
    assert not [name for name in clips if "weight_quantizer" in name]
    assert not [name for name in after if name.startswith("optimizer.")]  # the stage is over
    frozen = [name for name in before if name.startswith("model.") and name not in changed]
    assert any(name.endswith(".weight") for name in frozen)


def test_what_is_frozen_asks_for_no_gradient_and_the_rate_does_not_warm_up(open_run, monkeypatch):
    seen = []
    step = alone.Trainer.step

    def looking(self, images, labels, epoch, number, lr):
        found = step(self, images, labels, epoch, number, lr)
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        names = dict(self.supernet.named_parameters())
        with_gradient = {name for name, p in names.items() if p.grad is not None}
        wanted = {name for name, p in names.items() if p.requires_grad}
        seen.append((lr, wanted, with_gradient, {name for name, p in names.items() if id(p) in held}))
        return found

    monkeypatch.setattr(alone.Trainer, "step", looking)
    with open_run() as run:
        run.retrain()
    rates, wanted, with_gradient, held = zip(*seen, strict=True)
    assert rates[0] == 4e-3
    assert list(rates) == sorted(rates, reverse=True)
    assert wanted[0] == held[0]
    assert with_gradient[0] <= wanted[0]
    assert {name.rpartition(".bn.")[2] for name in wanted[0]} == {"weights.0", "biases.0"}


def test_after_a_stage_that_trained_all_the_rest_is_frozen(open_run):
    with open_run() as run:
        stages = [{"name": "all", "epochs": 1, "lr": 1e-3}, *tuning()["retrain"]["stages"]]
        config = load_config(TINY, {"retrain": {"points": "chosen", "start": "scratch", "stages": stages}})
        run.config = config.model_copy(update={"evaluation": run.config.evaluation})
        (net,) = run.retrain()
        first, last = tensors(run, net, "00-all"), tensors(run, net, "01-tune")
    changed = {name.rpartition(".bn.")[2] for name, value in first.items() if not torch.equal(value, last[name])}
    assert changed == {"weights.0", "biases.0", "mean0", "var0"}


# --- statistics --------------------------------------------------------------------------------------------------


def test_it_starts_from_the_calibrated_statistics_of_its_own_subnet(open_run):
    with open_run(epochs=0, points="front") as run:
        front, nets = run.fronts()[0], run.retrain()
        assert len(nets) == len(front["points"])
        for net, point in zip(nets, front["points"], strict=True):
            key = run.evaluator.cache_key(point["sample"], "test")
            assert net["metrics"]["search"] == point["metrics"]  # nothing was trained yet, so nothing may have changed
            assert net["correct"]["test"] == run.store.cached(key)[1].hex()
            assert net["before"]["difference"]["value"] == 0
            subnet = run.stages.supernet().extract(point["sample"])
            recalibrate(subnet, run.evaluator.calibration_images(subnet.resolution))
            evaluator = run.stages.evaluator(f"alone/{net['id']}")
            own = evaluator.supernet.extract(net["sample"])
            pairs = list(zip(subnet.subnet_layers(), own.subnet_layers(), strict=True))
            assert sum(layer.bn is not None for layer, _ in pairs) > 5
            for theirs, ours in pairs:
                if theirs.bn is not None:
                    assert torch.equal(theirs.bn.running_mean, ours.bn.running_mean)
                    assert torch.equal(theirs.bn.running_var, ours.bn.running_var)


def test_it_is_judged_with_the_statistics_that_it_was_finetuned_with(open_run):
    with open_run() as run:
        (net,) = run.retrain()
        evaluator = run.stages.evaluator(f"alone/{net['id']}")
        assert evaluator.calibrators == ()
        assert [c.name for c in run.evaluator.calibrators] == ["bn"]
        after, norms = tensors(run, net), [m for m in evaluator.supernet.named_modules() if hasattr(m[1], "mean0")]
        (name, norm), *_ = norms
        assert torch.equal(norm.mean0, after[f"model.{name}.mean0"])
        layer = next(m for m in evaluator.calibrated(net["sample"]).modules() if isinstance(m, SubnetLayer) and m.bn)
        channels = layer.bn.num_features
        assert torch.equal(layer.bn.running_mean, after[f"model.{name}.mean0"][:channels])
        evaluation = run.evaluate(net["sample"], "test", f"alone/{net['id']}")
        assert evaluation.metrics == net["metrics"]["test"]


def test_it_learns(open_run):
    with open_run(epochs=6, lr=0.05) as run:
        (net,) = run.retrain()
        lines = (run.store.path / "alone" / net["id"] / "stages/00-tune/records.jsonl").read_text().splitlines()
        losses = [json.loads(line)["losses"][0] for line in lines if '"gradient_norm"' in line]
        assert losses[-1] < 0.9 * losses[0]


# --- stopped, deployed, shown ------------------------------------------------------------------------------------


def test_stopped_after_an_epoch_it_goes_on_to_the_same_bytes(open_run, monkeypatch):
    with open_run("whole") as whole:
        whole.retrain()
    save = alone.save_checkpoint

    def stopping(trainer, to):
        save(trainer, to)
        raise StopError

    monkeypatch.setattr(alone, "save_checkpoint", stopping)
    with open_run("torn") as torn, pytest.raises(StopError):
        torn.retrain()
    monkeypatch.undo()
    with Run.open(torn.store.path, torn.registry) as torn:
        torn.retrain()
    for name in ("alone", "retrain.json"):
        one, two = (run.store.path / name for run in (whole, torn))
        assert (files(one) == files(two)) if one.is_dir() else (one.read_bytes() == two.read_bytes())


def test_it_is_exported_verified_and_shown_with_its_difference(open_run, capsys):
    with open_run(points="front", epochs=3) as run:
        nets = run.retrain()
        assert nets == list_retrained(run)
        stage = f"alone/{nets[0]['id']}"
        assert run.export(nets[0]["sample"], stage)["stage"] == stage
        verified = run.verify(nets[0]["sample"], stage)
        assert verified["passed"]
        assert verified["subnet_accuracy"] == nets[0]["metrics"]["test"]["accuracy"]
        front = run.fronts()[0]
        data = report_data(run)
        write_report(data, run.store.path)
        page = (run.store.path / "report.html").read_text()
        console.print_retrained(nets)
        shown = capsys.readouterr().out
        for net, point in zip(nets, front["points"], strict=True):
            before, after = point["test"]["accuracy"], net["metrics"]["test"]["accuracy"]
            change = net["before"]["difference"]
            assert net["before"]["metrics"] == {"search": point["metrics"]["accuracy"], "test": before}
            key = run.evaluator.cache_key(point["sample"], "test")
            n = net["num_images"]["test"]
            answers = [unpack_correct(b, n) for b in (bytes.fromhex(net["correct"]["test"]), run.store.cached(key)[1])]
            found = paired(*answers)
            assert change["value"] == pytest.approx(after - before, abs=1e-12)
            assert (change["low"], change["high"], change["p_value"]) == (
                found.difference.low, found.difference.high, found.p_value,
            )  # fmt: skip
            assert f"{before:.2%}" in shown
            assert f"{change['value']:+.2%}" in shown
            assert f"{100 * change['value']:+.1f} ({100 * change['low']:+.1f} to" in page
        assert "as searched" in shown
        assert "Points trained again by themselves" in page


# --- what cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": {"stages": [{"name": "a", "epochs": 1, "lr": 0.1, "parameters": "norms"}]}},
            "Stage 'a' of train.stages cannot have parameters = 'norms'",
        ),
        ({"retrain": {"start": "scratch"}}, "trains parameters = 'norms' alone, but retrain.start is 'scratch'"),
        ({"retrain": {"stages": [{"name": "a", "epochs": 1, "lr": 0.1, "parameters": "clips"}]}}, "cannot be 'clips'"),
        ({"quantization": {"act_quantizer": "batchquant"}}, "'batchquant' takes its ranges from calibration"),
    ],
)
def test_mistakes_are_said_before_a_directory_is_made(registry, tmp_path, changes, message):
    with pytest.raises(QnasError, match=message):
        Run.create(tmp_path / "run", load_config(TINY, tuning(), changes), registry)
    assert not (tmp_path / "run").exists()
