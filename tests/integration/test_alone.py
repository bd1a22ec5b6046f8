"""Subnets trained by themselves, and the ranking against them, on one tiny run."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import kendalltau

from qnas import alone, checkpoint, components
from qnas.alone import AloneSettings, list_alone
from qnas.config import load_config
from qnas.errors import ConfigError, StoreError
from qnas.nn.elastic import ElasticConv
from qnas.nn.supernet import Supernet
from qnas.rank import list_ranks
from qnas.run import Run
from qnas.statistics import unpack_correct
from qnas.train import Trainer, set_stage_mode

SPACE = {"se": False, "act": "relu", "depths": (1, 2), "kernels": (3, 5), "expansions": (3, 4)}
SETTINGS = {
    "threads": 1,
    "device": "cpu",
    "compile": False,
    "space": {"options": SPACE},
    "quantization": {"w_bits": (2, 4), "a_bits": (2, 4), "granularity": "network"},
    "train": {"float_epochs": 1, "epochs": 2, "batch_size": 256, "num_subnets": 3, "record_every": 2},
    "search": {"evaluations": 4, "options": {"population": 4}},
}
SCRATCH, SUPERNET = AloneSettings(), AloneSettings("supernet")


class StopError(Exception):
    """The process ends here."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, registry):
    path = tmp_path_factory.mktemp("alone") / "run"
    with Run.create(path, load_config(SETTINGS), registry) as run:
        run.train()
        run.search()
    return path


@pytest.fixture
def path(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def run(path, registry):
    with Run.open(path, registry) as run:
        yield run


@pytest.fixture(scope="module")
def results(trained, registry, tmp_path_factory):
    """The chosen subnet trained alone from both starts, and the run."""
    path = shutil.copytree(trained, tmp_path_factory.mktemp("results") / "run")
    with Run.open(path, registry) as run:
        sample = run.resolve("smallest")
        return SimpleNamespace(
            path=path,
            sample=sample,
            largest=run.space.highest(),
            space=run.space,
            scratch=run.train_alone(sample, SCRATCH),
            supernet=run.train_alone(run.space.highest(), SUPERNET),
        )


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- what a result says ------------------------------------------------------------------------------------------


def test_a_result_counts_images_and_work(results):
    scratch, supernet = results.scratch, results.supernet
    macs = [sum(layer.macs for layer in results.space.layers(s)) for s in (results.sample, results.largest)]
    assert scratch["image_passes"] == pytest.approx(3 * 4 * 256 * macs[0] / macs[1])  # 3 epochs of 4 steps of 256
    assert supernet["image_passes"] == pytest.approx(2 * 4 * 256)
    for result, epochs in ((scratch, {"float": 1, "quantized": 2}), (supernet, {"quantized": 2})):
        assert {stage["name"]: stage["epochs"] for stage in result["stages"]} == epochs
        for split in ("search", "test"):
            correct = unpack_correct(bytes.fromhex(result["correct"][split]), result["num_images"][split])
            assert float(correct.mean()) == result["metrics"][split]["accuracy"]
    assert [r["id"] for r in list_alone(results.path)] == sorted([scratch["id"], supernet["id"]])
    assert scratch["key"] == results.space.key(results.sample)


def test_training_alone_leaves_the_supernet_alone(trained, results):
    assert files(trained / "stages") == files(results.path / "stages")


def test_one_subnet_is_trained_and_its_kernels_are_crops(path, registry, monkeypatch):
    active = set()
    activate = Supernet.activate

    def watched(self, sample):
        active.add(self.space.key(sample))
        activate(self, sample)

    with Run.open(path, registry) as run:
        sample = run.resolve("smallest")
        monkeypatch.setattr(Supernet, "activate", watched)
        result = run.train_alone(sample, SCRATCH)
        monkeypatch.undo()
        assert active == {run.space.key(sample)}
        supernet = components.build_supernet(registry, run.config, run.space, run.data)
        last = path / "alone" / result["id"] / "stages" / "01-quantized" / "checkpoint.safetensors"
        checkpoint.load_weights(supernet, last)
        supernet.activate(sample)
    smaller = 0
    for layer in supernet.modules():
        if not isinstance(layer, ElasticConv) or layer.spec is None:
            continue
        for size, transform in layer.transforms.items():
            assert torch.equal(transform, torch.eye(int(size) ** 2))
        kernel, channels, inputs = layer.spec.kernel_size, layer.spec.out_channels, layer.spec.in_channels
        margin = (layer.weight.shape[-1] - kernel) // 2
        crop = layer.weight[
            :channels, : inputs // layer.spec.groups, margin : margin + kernel, margin : margin + kernel
        ]
        torch.testing.assert_close(layer.active_weight(), crop, rtol=1e-6, atol=1e-7)
        smaller += margin > 0
    assert smaller > 0


def test_it_trains_as_a_network_of_that_size_does(run):
    """A space that holds nothing but the subnet, from the same weights, comes to the same weights and answers."""
    sample = run.space.canonical(run.resolve("smallest"))
    config = alone._config(run.config, SCRATCH)
    pinned = run.space.pin(sample)
    elastic = alone._supernet(run, config, pinned, SCRATCH)
    options = {**SPACE, "depths": (1,), "kernels": (3,), "expansions": (3,)}
    for name, label in (("widths", "width"), ("resolutions", "resolution")):
        if label in sample:
            options[name] = (sample[label],)
    bits = {"w_bits": (2,), "a_bits": (2,)}
    changes = {"space": {"options": options}, "quantization": {**SETTINGS["quantization"], **bits}}
    fixed_config = load_config({**SETTINGS, **changes, "train": {**SETTINGS["train"], "num_subnets": 1}})
    space = components.build_space(run.registry, fixed_config, run.data)
    fixed = components.build_supernet(run.registry, fixed_config, space, run.data)
    assert space.num_samples == 1
    assert [x.macs for x in space.layers(space.highest())] == [x.macs for x in run.space.layers(sample)]
    fixed.activate(space.highest())
    ours = {m.name: m for m in elastic.modules() if isinstance(m, ElasticConv) and m.spec is not None}
    theirs = {m.name: m for m in fixed.modules() if isinstance(m, ElasticConv)}
    assert ours.keys() == theirs.keys()
    with torch.no_grad():
        for name, layer in theirs.items():
            layer.weight.copy_(ours[name].active_weight())
    trained = []
    for supernet, made, view in ((elastic, config, pinned), (fixed, fixed_config, space)):
        parts = (run.registry, made, supernet, run.data, None, run.processes)
        trainer = components.build_trainer(*parts, sampler=alone.OnlySample(view.highest()))
        trainer.run(lambda trainer: None)
        trained.append(trainer)
    first, second = (t.progress.history for t in trained)
    for one, two in zip(first, second, strict=True):
        assert one["losses"] == pytest.approx(two["losses"], rel=2e-3)
    for name, layer in theirs.items():
        torch.testing.assert_close(ours[name].active_weight(), layer.weight, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("calibrator", [None, "mse"])
def test_from_the_supernet_it_starts_with_the_supernets_answers(path, registry, monkeypatch, calibrator):
    with Run.open(path, registry) as run:
        run.config = run.config.model_copy(
            update={"train": run.config.train.model_copy(update={"calibrator": calibrator})}
        )
        sample = run.resolve(None)
        monkeypatch.setattr(Trainer, "_epoch", lambda self, stage: None)  # the stage is entered, and no step done
        result = run.train_alone(sample, SUPERNET)
        monkeypatch.undo()
        for split in ("search", "test"):
            evaluation = run.evaluate(sample, split)
            assert result["metrics"][split] == evaluation.metrics
            assert result["correct"][split] == evaluation.packed().hex()


# --- stopped and gone on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_stopped_after_any_epoch_it_goes_on_to_the_same_bytes(path, results, registry, monkeypatch, epoch, saved):
    count = 0

    def save(trainer, to):
        nonlocal count
        count += 1
        if saved or count < epoch:
            checkpoint.save_checkpoint(trainer, to)
        if count == epoch:
            raise StopError

    with Run.open(path, registry) as run:
        monkeypatch.setattr(alone, "save_checkpoint", save)
        with pytest.raises(StopError):
            run.train_alone(results.sample, SCRATCH)
        monkeypatch.undo()
        assert not list_alone(path)
    with Run.open(path, registry) as run:
        run.train_alone(results.sample, SCRATCH)
    folder = results.scratch["id"]
    assert files(path / "alone" / folder) == files(results.path / "alone" / folder)


@pytest.mark.parametrize("saved", [True, False])
def test_records_of_a_supernet_that_was_stopped_are_those_of_one_that_was_not(
    trained, tmp_path, registry, monkeypatch, saved
):
    count = 0

    def save(trainer, to):
        nonlocal count
        count += 1
        if saved or count != 2:
            checkpoint.save_checkpoint(trainer, to)
        if count in (1, 2):
            raise StopError

    config = load_config(SETTINGS)
    Run.create(tmp_path / "run", config, registry).close()
    monkeypatch.setattr("qnas.run.save_checkpoint", save)
    for stop in (True, True, False):
        with Run.open(tmp_path / "run", registry) as run:
            if stop:
                with pytest.raises(StopError):
                    run.train()
                if not saved and count == 2:  # killed in the middle of a line, so before the checkpoint
                    with (tmp_path / "run/stages/01-quantized/records.jsonl").open("a") as file:
                        file.write('{"event":"step","stage":"qu')
            else:
                run.train()
    assert files(tmp_path / "run" / "stages") == files(trained / "stages")


# --- the commands ------------------------------------------------------------------------------------------------


def test_the_command_prints_the_result_and_the_second_time_the_stored_one(qnas, path, monkeypatch):
    first = qnas("train-alone", path, "--config", "smallest", "--from", "supernet", "--budget", "0.5", "--json")
    result = json.loads(first.out)
    assert (result["start"], result["budget"], result["seed"]) == ("supernet", 0.5, 0)
    assert result["stages"] == [{"name": "quantized", "epochs": 1, "lr": 0.006}]
    stored = path / "alone" / result["id"] / "result.json"
    assert json.loads(stored.read_text()) == result
    monkeypatch.setattr(Trainer, "run", None)
    again = qnas("train-alone", path, "--config", "smallest", "--from", "supernet", "--budget", "0.5")
    assert again.code == 0
    score = result["metrics"]["test"]["accuracy"]
    assert f"{result['key']} trained alone from supernet, seed 0" in again.out
    assert f"{score:.2%}" in again.out


def test_a_run_without_a_trained_supernet_trains_subnets_from_scratch_alone(qnas, path):
    shutil.rmtree(path / "stages")
    settings = ("--config", "smallest", "--budget", "0.1")
    wanted = qnas("train-alone", path, *settings, "--from", "supernet")
    assert wanted.code == 2
    assert "is not trained to the end of stage 'quantized'. Go on with `qnas train --resume" in wanted.err
    assert not list_alone(path)
    done = qnas("train-alone", path, *settings)
    assert done.code == 0, done.err
    assert "trained alone from scratch" in done.out
    ranked = qnas("rank", path, "--configs", "2")
    assert ranked.code == 2
    assert "is not trained to the end" in ranked.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train-alone", "--config", "zzz"), "--config 'zzz' is no trial's key"),
        (("train-alone", "--lr", "0"), "--budget and --lr must be over 0; given: budget 1.0, lr 0.0"),
        (("train-alone", "--budget", "-1"), "--budget and --lr must be over 0; given: budget -1.0"),
        (("train-alone", "--from", "nothing"), "'scratch', 'supernet'"),
        (("rank", "--configs", "1"), "a ranking needs at least 2 subnets"),
        (("rank", "--configs", "many"), "'many' is not a valid integer"),
    ],
)
def test_mistakes_are_named(qnas, path, arguments, message):
    command, *rest = arguments
    answer = qnas(command, path, *rest)
    assert answer.code == 2
    assert message in answer.err
    assert not (path / "alone").exists()


def test_rank_compares_and_goes_on(qnas, path, run, monkeypatch):
    run.close()
    arguments = ("rank", path, "--configs", "3", "--budget", "0.3", "--json")
    whole = json.loads(qnas(*arguments).out)
    entries = whole["configs"]
    assert [result["key"] for result in list_alone(path)] == sorted(entry["key"] for entry in entries)
    tau = kendalltau([e["supernet"] for e in entries], [e["alone"] for e in entries]).statistic
    assert whole["tau"]["value"] == pytest.approx(0.0 if tau != tau else tau)
    by_key = {result["key"]: result for result in list_alone(path)}
    for entry in entries:
        result = by_key[entry["key"]]
        assert entry["alone"] == result["metrics"]["test"]["accuracy"]
        assert entry["alone_search"] == result["metrics"]["search"]["accuracy"]
        assert run.evaluate(entry["sample"], "search").metrics["accuracy"] == entry["supernet"]
    assert whole["image_passes"] == pytest.approx(sum(result["image_passes"] for result in by_key.values()))
    assert list_ranks(path) == [whole]
    (file,) = (path / "ranks").iterdir()
    file.unlink()  # stopped before the last step
    monkeypatch.setattr(Trainer, "run", None)
    assert json.loads(qnas(*arguments).out) == whole
    shown = qnas(*arguments[:-1]).out
    assert f"Kendall tau {whole['tau']['value']:.3f}" in shown
    assert all(entry["key"] in shown for entry in entries)


def test_rank_of_more_subnets_than_there_are(run, monkeypatch):
    monkeypatch.setattr(run.space.__class__, "draw", lambda self, rng, n: self.indices([self.lowest()] * n))
    with pytest.raises(ConfigError, match="fewer than 5 different subnets: 1"):
        run.rank(5, SCRATCH)
    with pytest.raises(StoreError, match="is no trial's key"):
        run.resolve("zzz")


def test_tensorboard_changes_nothing(qnas, trained, tmp_path, monkeypatch):
    path = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(path / "stages")
    answer = qnas("train", "--resume", path, "--tensorboard", "--quiet")
    assert answer.code == 0, answer.err
    assert files(path / "stages") == files(trained / "stages")
    assert list((path / "tensorboard").glob("events.out.tfevents.*"))


def test_tensorboard_that_is_not_installed_leaves_no_directory(qnas, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    answer = qnas("run", "--out", tmp_path / "new", "--tensorboard")
    assert answer.code == 2
    assert "--tensorboard needs the package tensorboard" in answer.err
    assert not (tmp_path / "new").exists()


# --- the front's hypervolume -------------------------------------------------------------------------------------


def test_the_front_states_its_box_and_the_value_that_follows(run):
    from qnas.hypervolume import hypervolume
    from qnas.protocols import Objective

    other = load_config({**SETTINGS, "search": {"strategy": "random", "evaluations": 3}})
    fronts = [run.fronts()[0], run.search(other)]
    largest = sum(layer.macs * layer.w_bits * layer.a_bits for layer in run.space.layers(run.space.highest()))
    for front in fronts:
        box = front["hypervolume"]
        assert box["reference"] == {"accuracy": 0.0, "bitops": largest}
        assert box["ideal"] == {"accuracy": 1.0, "bitops": 0.0}
        objectives = [Objective(**o) for o in front["objectives"]]
        for split, key in (("search", "metrics"), ("test", "test")):
            values = [{o.name: point[key][o.name] for o in objectives} for point in front["points"]]
            assert box[split] == hypervolume(values, objectives, box["reference"], box["ideal"])
            assert 0 < box[split] < 1


def test_quantizers_of_a_pinned_supernet_are_on(run):
    pinned = run.space.pin(run.space.lowest())
    supernet = alone._supernet(run, alone._config(run.config, SUPERNET), pinned, SUPERNET)
    set_stage_mode(supernet, components.make_stages(run.config)[-1])
    assert supernet.mode == "quantize"
    assert all(
        not p.requires_grad for m in supernet.modules() if isinstance(m, ElasticConv) for p in m.transforms.values()
    )
