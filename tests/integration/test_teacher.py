"""A run taught by another run: what the teacher answers, what is recorded, resuming, refusals, nets trained alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from qnas import components
from qnas.config import load_config
from qnas.errors import QnasError, StoreError
from qnas.initial import file_digest
from qnas.run import Run
from qnas.teachers import Teacher
from qnas.train import Trainer

TINY = {
    "threads": 1,
    "device": "cpu",
    "compile": False,
    "space": {"options": {"se": False, "act": "relu", "kernels": [3], "expansions": [3], "depths": [1, 2]}},
    "quantization": {"w_bits": [2, 4], "a_bits": [2, 4], "granularity": "network"},
    "train": {"num_subnets": 2, "batch_size": 256, "float_epochs": 1, "epochs": 1},
    "evaluation": {"calibration_images": 64, "calibration_batch": 32, "batch_size": 100},
    "search": {"evaluations": 2, "strategy": "random", "objectives": ["accuracy", "macs"]},
    "data": {"search_fraction": 0.3, "test_fraction": 0.3},
}


def student(teacher, *layers, **options):
    taught = {"supervision": "teacher", "supervision_options": {"teacher": str(teacher), **options}}
    return load_config(TINY, {"seed": 1, "train": taught}, *layers)


@pytest.fixture(scope="module")
def big(tmp_path_factory, registry):
    """A finished run, searched, of other splits and so of another pixel grid."""
    path = tmp_path_factory.mktemp("big") / "run"
    with Run.create(path, load_config(TINY, {"data": {"image_size": 12}}), registry) as run:
        run.train()
        run.search()
    return path


def largest_key(path, registry):
    with Run.open(path, registry) as run:
        return run.space.key(run.space.highest())


def taught(run):
    """Return the run's supervision, as training makes it."""
    task = components.make_task(run.registry, run.config)
    recorded = run.recorded_supervision()
    return components.make_supervision(run.registry, run.config, task, run.data, torch.device("cpu"), recorded)[0]


def test_the_teacher_is_the_chosen_net_as_its_own_run_judges_it(big, tmp_path, registry):
    path = tmp_path / "run"
    with Run.create(path, student(big), registry) as run, Run.open(big, registry) as theirs:
        front = theirs.fronts()[-1]
        point = next(p for p in front["points"] if p["key"] == front["chosen"])
        checkpoint = theirs.trained_checkpoint()
        recorded = json.loads((path / "supervision.json").read_text())
        assert recorded == {
            "path": str(big),
            "stage": "quantized",
            "key": front["chosen"],
            "sample": point["sample"],
            "weights": str(checkpoint.relative_to(big)),
            "sha256": file_digest(checkpoint),
        }
        assert run.data.pixels != theirs.data.pixels
        assert run.data.image_size != theirs.data.image_size
        # The teacher's own test images, as this run would show them if they were its own.
        images = theirs.data.test.images
        supervision = taught(run)
        supervision.begin_step(run.data.pixels.normalise(images[:100]), theirs.data.test.labels[:100])
        evaluator = theirs.evaluator
        want = evaluator.outputs(evaluator.subnet(point["sample"]), "test")[:100]
        assert torch.equal(supervision._logits, want)
        assert not supervision._logits.requires_grad


def test_it_learns_and_asks_the_teacher_once_a_step(big, tmp_path, registry, monkeypatch):
    calls, ask = [], Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda self, images: calls.append(len(images)) or ask(self, images))
    longer = {"train": {"float_epochs": 6, "lr": 0.01, "batch_size": 128}}
    with Run.create(tmp_path / "run", student(big, longer), registry) as run:
        history = run.train().history
        assert len(calls) == 7 * (len(run.data.train) // 128)  # two subnets a step
        assert calls[0] == 128
    assert history[5]["losses"][0] < 0.7 * history[0]["losses"][0]


def test_resumed_it_trains_to_the_same_bytes_under_the_same_teacher(big, tmp_path, registry, monkeypatch):
    config = student(big, config="largest", label_share=0.5)
    files = []
    for name in ("whole", "torn"):
        with Run.create(tmp_path / name, config, registry) as run:
            if name == "torn":
                save = Run._save

                def stopping(self, trainer, save=save):
                    save(self, trainer)
                    raise KeyboardInterrupt

                monkeypatch.setattr(Run, "_save", stopping)
                with pytest.raises(KeyboardInterrupt):
                    run.train()
                monkeypatch.undo()
            else:
                run.train()
    with Run.open(tmp_path / "torn", registry) as run:
        run.train()
    for name in ("whole", "torn"):
        files.append([p.read_bytes() for p in sorted((tmp_path / name / "stages").rglob("*.safetensors"))])
    assert files[0] == files[1]


def test_another_teacher_is_refused_and_a_later_search_of_its_run_is_not(big, tmp_path, registry):
    copy = shutil.copytree(big, tmp_path / "big")
    with Run.create(tmp_path / "run", student(copy), registry) as run:
        recorded = run.recorded_supervision()
    with Run.open(copy, registry) as theirs:  # whose chosen point is another afterwards
        theirs.search(load_config(TINY, {"search": {"objectives": ["macs"], "evaluations": 3}}))
        assert theirs.fronts()[-1]["chosen"] != recorded["key"]
    with Run.open(tmp_path / "run", registry) as run:
        taught(run)
        checkpoint = copy / recorded["weights"]
        whole = checkpoint.read_bytes()
        other = next(path for path in copy.rglob("*.safetensors") if path != checkpoint)
        checkpoint.write_bytes(other.read_bytes())
        with pytest.raises(QnasError):
            run.train()
        checkpoint.write_bytes(whole)
        (tmp_path / "run" / "supervision.json").write_text(json.dumps({**recorded, "sha256": "0" * 64}))
        with pytest.raises(StoreError, match=r"'teacher' learns from .*big\) changed.*: sha256 was '0000.*Restore it"):
            run.train()
        shutil.rmtree(copy)
        with pytest.raises(StoreError, match="big does not exist"):
            run.train()


def test_nets_trained_alone_learn_from_it_and_can_be_teachers(big, tmp_path, registry, monkeypatch):
    retrain = {"retrain": {"points": "chosen", "start": "supernet"}}
    with Run.create(tmp_path / "run", student(big, retrain, config="smallest"), registry) as run:
        assert run.recorded_supervision()["key"] != largest_key(big, registry)
        run.train()
        run.search()
        seen, begin = [], Trainer.run
        monkeypatch.setattr(Trainer, "run", lambda self, save: seen.append(self.supervision) or begin(self, save))
        (net,) = run.retrain()
        assert seen[0]._teacher is not None
    again = student(tmp_path / "run", stage=f"alone/{net['id']}")
    with Run.create(tmp_path / "again", again, registry) as run:
        named = run.recorded_supervision()
        assert (named["stage"], named["key"]) == (f"alone/{net['id']}", net["key"])
        assert named["weights"].startswith(f"alone/{net['id']}/stages/")


def test_without_a_search_it_is_the_largest_subnet(big, tmp_path, registry):
    copy = shutil.copytree(big, tmp_path / "big")
    shutil.rmtree(copy / "searches")
    with Run.create(tmp_path / "run", student(copy), registry) as run, Run.open(copy, registry) as theirs:
        assert run.recorded_supervision()["sample"] == theirs.space.highest()


def test_mistakes_are_said_before_a_directory_is_made(big, tmp_path, registry, qnas):
    unfinished = tmp_path / "unfinished"
    Run.create(unfinished, load_config(TINY), registry).close()
    for config, message in [
        (student(unfinished), "not trained to the end"),
        (student(big, config="zz"), "is no trial's key"),
        (student(big, stage="nothing"), "'nothing'"),
    ]:
        with pytest.raises(QnasError, match=message):
            Run.create(tmp_path / "run", config, registry)
    assert not (tmp_path / "run").exists()
    done = qnas("train", "--out", tmp_path / "run", "--supervision", "teacher", "--supervision-option", "teacher=gone")
    assert done.code == 2
    assert "The teacher" in done.err
    assert "gone does not exist" in done.err
    assert not (tmp_path / "run").exists()


def test_other_classes_and_other_names_are_refused(big, tmp_path, registry, make_folder):
    for names, message in [
        (("cat", "dog", "owl"), "answers 10 classes, but data set .* has 3"),
        ((*"012345678", "x"), "calls class 9 '9', but data set .* calls it 'x'"),
    ]:
        folder = make_folder(tmp_path / str(len(names)), classes=names, mode="L")
        data = {"data": {"name": "files", "options": {"path": str(folder), "channels": 1}}}
        with pytest.raises(QnasError, match=message):
            Run.create(tmp_path / "run", student(big, data), registry)


@pytest.mark.slow
def test_two_processes_are_taught_by_one_teacher(big, tmp_path):
    config = student(big)
    (tmp_path / "config.toml").write_text(config.to_toml().replace("devices = 1", "devices = 2"))
    command = [sys.executable, "-m", "qnas", "train", "--config-file", "config.toml", "--out", "two", "-q"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=True)
    (tmp_path / "config.toml").write_text(config.to_toml())
    command[-2] = "one"
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=True)
    losses = []
    for name in ("one", "two"):
        lines = (tmp_path / name / "stages/00-float/records.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["losses"] for line in lines if '"losses"' in line])
    assert losses[0]
    for one, two in zip(*losses, strict=True):
        assert one == pytest.approx(two, rel=1e-3)
