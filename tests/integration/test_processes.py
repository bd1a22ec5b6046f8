"""Two processes do what one does: gradients, statistics, searches; and a run survives the death of either.

Called as a program, this file is one process of a step: ``test_processes.py OUT DEVICES FOLDING QUANTIZER``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

TIMEOUT = 120  # seconds
QNAS = (sys.executable, "-m", "qnas")
FLAGS = (
    *("--float-epochs", "1", "--epochs", "1", "--batch-size", "256", "--set", "train.num_subnets=3"),
    *("--space-option", "depths=1,2", "--space-option", "kernels=[3]", "--no-se", "--act", "relu"),
    *("--evaluations", "6", "--strategy-option", "population=4", "--seed", "3", "--threads", "1", "--device", "cpu"),
)


def step_of(processes, folding, quantizer):
    """Train one quantized step of a tiny supernet; return the gradients, and the statistics afterwards."""
    from qnas import components
    from qnas.config import load_config
    from qnas.plugins import load_registry

    torch.set_num_threads(1)
    config = load_config(
        {
            "seed": 2,  # of seed 1 a channel of the background is 1e-15 from 0, where a gradient is cut to either side
            "compile": False,
            "space": {"options": {"se": False, "depths": (1,), "kernels": (3,), "resolutions": (16,)}},
            "quantization": {
                "weight_quantizer": "lsq" if quantizer == "basq" else quantizer,
                "act_quantizer": quantizer,
                "folding": folding,
            },
            "train": {
                **{"float_epochs": 0, "epochs": 1, "batch_size": 64, "num_subnets": 3, "clip_norm": 1e9},
                **({"sampler": "lrh", "supervision": "adaptive-label"} if quantizer == "multiquant" else {}),
            },
        }
    )
    registry = load_registry()
    data = components.load_data(registry, config)
    space = components.build_space(registry, config, data)
    supernet = components.build_supernet(registry, config, space, data)
    trainer = components.build_trainer(registry, config, supernet, data, None, processes)
    supernet.double()  # in float32 some value comes so near to a tie of the rounding that it may fall to either side
    start = trainer.batches.start_images
    trainer.batches.start_images = lambda n, seed: start(n, seed).double()
    trainer._enter_stage()
    images, labels = next(iter(trainer.batches.epoch(0)))
    losses, norm = trainer.step(images.double(), labels, 0, 0, 0.01)
    found = {f"grad.{name}": p.grad for name, p in supernet.named_parameters() if p.grad is not None}
    found |= {f"state.{name}": value.clone() for name, value in supernet.named_buffers()}
    found["losses"] = torch.tensor([*losses, norm])
    trainer.supervision.end_epoch(processes.ranks)
    found |= {f"supervision.{name}": value for name, value in trainer.supervision.state_dict().items()}
    return {name: value.contiguous() for name, value in found.items()}


def program(out: str, devices: str, folding: str, quantizer: str) -> None:
    from qnas.processes import connect

    processes = connect(device="cpu", devices=int(devices), num_nodes=1, precision="float32")
    found = step_of(processes, folding, quantizer)
    save_file(found, f"{out}/{processes.rank}.safetensors")
    processes.close()


if __name__ == "__main__":
    program(*sys.argv[1:])
    sys.exit()


def run(*command, cwd, ok=True, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert not ok or done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    ("folding", "quantizer"),
    [("none", "lsq"), ("batch", "lsq"), ("none", "minmax"), ("none", "multiquant"), ("none", "basq")],
)
def test_gradients_of_two_processes_are_those_of_one(tmp_path, folding, quantizer):
    from qnas.processes import Processes

    run(sys.executable, __file__, str(tmp_path), "2", folding, quantizer, cwd=tmp_path)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    one = step_of(Processes(), folding, quantizer)
    assert first.keys() == second.keys() == one.keys()
    assert sum(name.startswith("grad.") for name in one) > 30
    assert ("supervision.labels" in one) == (quantizer == "multiquant")  # adaptive labels of the whole batch
    branches = [name for name in one if ".alphas." in name]
    assert bool(branches) == (quantizer == "basq")
    sites = {name.partition(".alphas.")[0] for name in branches}
    assert len(branches) <= 3 * len(sites)  # of three subnets: the other clip values, of 21 a site, keep no gradient
    for name, want in one.items():
        assert torch.equal(first[name], second[name]), f"{name} differs between the processes"
        atol = 1e-5 * float(want.double().abs().max()) + 1e-9  # losses are computed in float32
        torch.testing.assert_close(first[name], want, rtol=1e-5, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that one process trained, with its search."""
    folder = tmp_path_factory.mktemp("one")
    run(*QNAS, "train", "--out", "run", *FLAGS, "-q", cwd=folder)
    return folder


def copy(trained, tmp_path):
    import shutil

    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path


def test_two_processes_find_the_front_that_one_finds(trained, tmp_path):
    one, two = copy(trained, tmp_path / "1"), copy(trained, tmp_path / "2")
    run(*QNAS, "search", "run", "-q", cwd=one)
    done = run(*QNAS, "search", "run", "--devices", "2", "--json", cwd=two)
    fronts = [(folder / "run/searches/01-evolution/front.json").read_bytes() for folder in (one, two)]
    assert fronts[0] == fronts[1]
    assert json.loads(done.stdout) == json.loads(fronts[0])  # the second process prints nothing

    from qnas.store import RunDirectory

    dumps = []
    for folder in (one, two):
        with RunDirectory(folder / "run") as store:
            dumps.append(store.canonical_dump())
    assert dumps[0] == dumps[1]


def test_two_processes_run_the_whole_job_under_torchrun(tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    done = run(*torchrun, "-m", "qnas", "run", "--devices", "2", "--out", "run", *FLAGS, "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert result["verify"]["passed"]
    assert (tmp_path / "run/report.html").is_file()


def test_torchrun_and_flags_must_agree(tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    done = run(*torchrun, "-m", "qnas", "train", "--out", "run", *FLAGS, cwd=tmp_path, ok=False)
    assert done.returncode != 0
    assert "--nproc-per-node" in done.stderr
    assert not (tmp_path / "run").exists()


def test_killed_together_two_processes_go_on_to_the_same_bytes(tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    begin = (*QNAS, "train", "--out", "run", "--devices", "2", *FLAGS)
    run(*begin, "-q", cwd=whole)
    process = subprocess.Popen(begin, cwd=torn, start_new_session=True, stderr=subprocess.DEVNULL)
    checkpoint = torn / "run/stages/00-float/checkpoint.safetensors"
    deadline = time.monotonic() + TIMEOUT
    while not checkpoint.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run(*QNAS, "train", "--resume", "run", "-q", cwd=torn)
    for name in ("stages/00-float", "stages/01-quantized"):
        for file in ("checkpoint.safetensors", "records.jsonl"):
            assert (whole / "run" / name / file).read_bytes() == (torn / "run" / name / file).read_bytes()


def test_a_process_that_dies_ends_the_others(tmp_path):
    begin = (*QNAS, "train", "--out", "run", "--devices", "2", *FLAGS)
    process = subprocess.Popen(begin, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        child = first_child(process.pid)
        deadline = time.monotonic() + TIMEOUT
        while not (tmp_path / "run/stages/00-float/checkpoint.safetensors").is_file() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(child, signal.SIGKILL)
        process.communicate(timeout=TIMEOUT)
        assert process.returncode != 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def first_child(pid: int) -> int:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.exists():
        pytest.skip("this system does not list a process's children")
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        children = path.read_text().split()
        for child in map(int, children):
            with contextlib.suppress(OSError):  # it was a short one, such as a compiler
                if b"\0LOCAL_RANK=1\0" in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
                    return child
        time.sleep(0.02)
    raise AssertionError("no second process was started")


def test_gpus_that_are_not_there_are_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run(*QNAS, "train", "--out", "run", *FLAGS[:-1], "cuda", cwd=tmp_path, ok=False)
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
    assert not (tmp_path / "run").exists()
