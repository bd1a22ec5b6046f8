"""The command line as a user meets it: one tiny run, every command on it, and every mistake.

What only reads or refuses runs through ``qnas.cli.main`` in this process, which spares importing torch each time; the
run itself, and one example of each kind, go through the installed script.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from onnx import numpy_helper

from qnas.cli import main
from qnas.config import load_config, merge, tomllib
from qnas.hookspecs import ComponentSpec, hookimpl
from qnas.plugins import load_registry
from qnas.run import Run

QNAS = Path(sys.executable).with_name("qnas")
TINY = (
    *("--float-epochs", "1", "--epochs", "1", "--batch-size", "128", "--set", "train.num_subnets=3"),
    *("--space-option", "depths=1,2", "--space-option", "kernels=3", "--no-se", "--act", "relu"),
    *("--bits-granularity", "network", "--threads", "1"),
    *("--evaluations", "8", "--strategy-option", "population=4"),
)
PROGRESS = re.compile(r"(?m)^\[ *\d+\.\d s\] ")


@dataclass
class Answer:
    code: int
    out: str
    err: str


def script(*arguments, cwd) -> Answer:
    """Run the installed script, piped."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    done = subprocess.run(
        [QNAS, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def qnas(monkeypatch, capsys, tmp_path):
    """Returns a function that runs the entry point of the script in an empty folder."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*arguments) -> Answer:
        monkeypatch.setattr(sys, "argv", ["qnas", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        return Answer(int(stop.value.code or 0), shown.out, shown.err)

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, and what `qnas run` printed."""
    folder = tmp_path_factory.mktemp("cli")
    return folder / "run", script("run", "--out", "run", *TINY, cwd=folder)


@pytest.fixture(scope="module")
def run(finished):
    return finished[0]


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the finished run, to spoil."""
    return shutil.copytree(run, tmp_path / "copy")


@pytest.fixture(scope="module")
def front(run):
    return json.loads((run / "searches" / "01-evolution" / "front.json").read_text())


def ok(answer: Answer) -> Answer:
    assert answer.code == 0, answer.err
    assert_readable(answer)
    return answer


def assert_readable(answer: Answer) -> None:
    for text in (answer.out, answer.err):
        assert "\x1b" not in text
        assert "\r" not in text
        assert "Traceback" not in text


# --- the user's images -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pets(tmp_path_factory, make_folder):
    return make_folder(tmp_path_factory.mktemp("images") / "pets", ("cat", "dog", "owl"), each=24)


def test_run_on_a_folder_of_images(pets, qnas, monkeypatch):
    monkeypatch.chdir(pets.parent)
    answer = ok(qnas("run", "--data", "pets", "--out", "run", *TINY, "--batch-size", "16", "--json"))
    front = json.loads(answer.out)["front"]
    assert front["num_images"] == {"train": 42, "search": 15, "test": 15}
    stored = tomllib.loads(Path("run/config.toml").read_text())["data"]
    assert (stored["name"], stored["image_size"], stored["options"]) == ("files", 16, {"path": str(pets)})
    model = onnx.load(f"run/exports/{front['chosen']}/model.onnx")
    assert {p.key: p.value for p in model.metadata_props}["qnas.classes"] == '["cat", "dog", "owl"]'
    monkeypatch.chdir(pets)  # the path holds from anywhere
    again = json.loads(ok(qnas("evaluate", "../run", "--config", front["chosen"], "--json")).out)
    assert again["metrics"] == next(p["metrics"] for p in front["points"] if p["key"] == front["chosen"])
    ok(qnas("run", "--resume", "../run", "--data", "../pets", "--quiet"))
    refused(
        qnas("run", "--resume", "../run", "--data", "cat"),
        "data.options.path",
        repr(str(pets)),
        repr(str(pets / "cat")),
    )
    refused(qnas("run", "--resume", "../run", "--data", "digits"), "data.name", "'files'", "'digits'")
    (pets / "cat" / "000.png").unlink()
    refused(qnas("evaluate", "../run", "--config", "largest"), "'pets' is not what the run", "Restore them")


def test_images_that_are_streamed_train_the_same_net(make_folder, qnas, tmp_path):
    pets = make_folder(tmp_path / "pets", ("cat", "owl"), each=24)
    found = {}
    for memory in ("yes", "no"):
        flags = ("--set", f"data.options.memory={memory}", "--set", "data.options.workers=1")
        ok(qnas("run", "--data", pets, "--out", memory, *TINY, "--batch-size", "16", *flags, "-q"))
        stages = [path.read_bytes() for path in sorted(Path(memory).rglob("checkpoint.safetensors"))]
        front = json.loads(next(Path(memory).rglob("front.json")).read_text())
        found[memory] = (stages, front)
    assert len(found["yes"][0]) == 2
    assert found["yes"] == found["no"]


def test_a_broken_image_ends_at_once_and_leaves_nothing(pets, qnas, tmp_path):
    spoilt = shutil.copytree(pets, tmp_path / "spoilt")
    (spoilt / "dog" / "005.png").write_bytes(b"no image")
    refused(qnas("run", "--data", spoilt, *TINY), "dog/005.png", "it is no image", "Repair or remove it")
    assert not list(Path.cwd().iterdir())


# --- the whole job -----------------------------------------------------------------------------------------------


def test_run_does_the_whole_job(finished, front):
    path, answer = finished
    ok(answer)
    made = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    chosen = front["chosen"]
    assert made >= {
        "config.toml",
        "environment.json",
        "trials.sqlite",
        "stages/00-float/checkpoint.safetensors",
        "stages/01-quantized/checkpoint.safetensors",
        "searches/01-evolution/front.json",
        f"exports/{chosen}/model.onnx",
        f"exports/{chosen}/packed.safetensors",
        f"exports/{chosen}/verify.json",
        "report.html",
        "front.png",
        "timings.json",
    }
    assert "Front of 8 subnets (01-evolution, stage quantized)" in answer.out
    assert chosen in answer.out
    assert "Verification passed" in answer.out
    assert re.search(r"Model: +run/exports/", answer.out)
    assert "Report: run/report.html" in answer.out
    assert re.search(r"Time: +train \d", answer.out)


def test_progress_goes_to_standard_error_line_by_line(finished):
    answer = finished[1]
    assert not PROGRESS.search(answer.out)
    assert answer.err.startswith("Run directory: run\n")
    assert len(PROGRESS.findall(answer.err)) == answer.err.count("\n") - 1
    for part in ("train: stage float, 1 epochs", "train: quantized epoch 1, loss", "search: 8/8", "report: done in"):
        assert part in answer.err


def test_the_run_says_what_it_was_made_with(run):
    config = tomllib.loads((run / "config.toml").read_text())
    assert config["space"]["options"] == {"depths": [1, 2], "kernels": 3, "se": False, "act": "relu"}
    assert (config["threads"], config["search"]["evaluations"]) == (1, 8)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["command"].startswith("qnas run --out run --float-epochs 1")
    assert environment["packages"]["torch"]


def test_a_finished_run_can_be_resumed_and_stays_the_same(copied, front, qnas):
    answer = ok(qnas("run", "--resume", copied, "--quiet"))
    assert json.loads((copied / "searches" / "01-evolution" / "front.json").read_text()) == front
    assert answer.err == ""


def test_a_runs_own_file_makes_the_run_again(run, qnas, tmp_path):
    settings = (*("--set", "train.num_subnets=2"), *("--float-epochs", "0"), *("--evaluations", "3"))
    value = json.loads(
        ok(qnas("run", "--config-file", run / "config.toml", "--out", tmp_path / "new", *settings, "--json")).out
    )
    assert set(value) == {"run", "front", "export", "verify", "timings"}
    assert value["front"]["evaluations"] == 3
    assert value["verify"]["passed"]
    made = tomllib.loads((tmp_path / "new" / "config.toml").read_text())
    given = tomllib.loads((run / "config.toml").read_text())
    assert made["space"] == given["space"]
    assert (made["train"]["float_epochs"], made["train"]["epochs"]) == (0, given["train"]["epochs"])


def test_train_then_search_in_the_default_folder(qnas):
    value = json.loads(ok(qnas("train", *TINY, "--float-epochs", "0", "--set", "train.num_subnets=1", "--json")).out)
    assert value["run"] == "runs/001-mbv3-lsq-evolution"
    assert len(value["history"]) == 1
    refused = qnas("evaluate", value["run"])
    assert refused.code == 2
    assert "no finished search" in refused.err
    answer = ok(qnas("search", value["run"], "--evaluations", "2", "--quiet"))
    assert "Front of 2 subnets" in answer.out
    assert answer.err == ""


# --- commands on a run -------------------------------------------------------------------------------------------


def test_search_with_other_settings_stands_beside_the_first(copied, front, qnas):
    arguments = ("search", copied, "--strategy", "random", "--evaluations", "5", "--objective", "accuracy")
    answer = ok(qnas(*arguments, "--json"))
    assert answer.err == ""
    value = json.loads(answer.out)
    assert (value["search"], value["strategy"], value["evaluations"]) == ("02-random", "random", 5)
    assert [o["name"] for o in value["objectives"]] == ["accuracy"]
    assert len(value["points"]) == 1
    assert json.loads((copied / "searches" / "01-evolution" / "front.json").read_text()) == front


def test_search_again_with_the_same_settings_judges_nothing(copied, front, qnas):
    assert json.loads(ok(qnas("search", copied, "--json")).out) == front
    assert not (copied / "searches" / "02-evolution").exists()


def test_a_cost_installed_after_judging_can_be_an_objective(copied, monkeypatch):
    """Judgements that are reused know nothing of it."""
    module = types.ModuleType("later_cost")
    module.COST = SimpleNamespace(direction="min", unit="", layer_cost=lambda layer: 2 * layer.macs)
    monkeypatch.setitem(sys.modules, "later_cost", module)

    @hookimpl
    def qnas_components():
        yield ComponentSpec("cost", "later", "later_cost:COST", "Twice the MACs")

    module.qnas_components = qnas_components
    with Run.open(copied, load_registry([("later:plugin", module)])) as run:
        settings = merge(run.config.model_dump(exclude_none=True), {"search": {"objectives": ["accuracy", "later"]}})
        points = run.search(load_config(settings))["points"]
    assert all(point["metrics"]["later"] == 2 * point["metrics"]["macs"] for point in points)


def test_search_under_a_constraint_meets_it(copied, front, qnas):
    limit = min(p["metrics"]["bitops"] for p in front["points"]) * 1.5
    value = json.loads(ok(qnas("search", copied, "--constraint", f"bitops<={limit}", "--json")).out)
    assert value["points"]
    assert all(point["metrics"]["bitops"] <= limit for point in value["points"])


def test_evaluate_gives_what_the_search_found(run, front, qnas, tmp_path):
    for point in front["points"]:
        value = json.loads(ok(qnas("evaluate", run, "--config", point["key"][:10], "--json")).out)
        assert (value["key"], value["split"], value["metrics"]) == (point["key"], "search", point["metrics"])
        assert value["sample"] == point["sample"]
        tested = json.loads(ok(qnas("evaluate", run, "--config", point["key"], "--split", "test", "--json")).out)
        assert tested["metrics"]["accuracy"] == point["test"]["accuracy"]
        assert tested["num_images"] == front["num_images"]["test"]


def test_evaluate_takes_names_and_files(run, front, qnas, tmp_path):
    chosen = json.loads(ok(qnas("evaluate", run, "--json")).out)
    assert chosen["key"] == front["chosen"]
    found = {name: json.loads(ok(qnas("evaluate", run, "--config", name, "--json")).out) for name in NAMED}
    assert found["smallest"]["metrics"]["bitops"] < found["largest"]["metrics"]["bitops"]
    file = tmp_path / "mine.toml"
    lines = [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in found["smallest"]["sample"].items()]
    file.write_text("\n".join(lines))
    assert json.loads(ok(qnas("evaluate", run, "--sample", file, "--json")).out) == found["smallest"]


NAMED = ("largest", "smallest")


def test_evaluate_prints_a_small_table(run, front):
    answer = ok(script("evaluate", run, "--split", "test", cwd=run.parent))
    assert answer.err == ""
    images = front["num_images"]["test"]
    start = f"{front['chosen']} on {images} images of the test split, after stage quantized:\n"
    assert answer.out.startswith(start)
    assert re.search(r"accuracy +\d+\.\d\d% ± \d\.\d\d%", answer.out)
    assert re.search(r"bitops +[\d,]+\n", answer.out)


def test_export_and_verify_a_subnet_and_the_whole_front(copied, front, qnas):
    one = ok(qnas("export", copied, "--config", "smallest"))
    assert "model.onnx" in one.out
    assert re.search(r"in float +nothing", one.out)  # no squeeze-excite and ReLU only
    exported = json.loads(ok(qnas("export", copied, "--all", "--json")).out)
    assert sorted(e["key"] for e in exported) == sorted(p["key"] for p in front["points"])
    for value in exported:
        assert (copied / value["onnx"]).stat().st_size == value["onnx_bytes"]
        onnx.checker.check_model(str(copied / value["onnx"]))
    verified = json.loads(ok(qnas("verify", copied, "--all", "--json")).out)
    assert {v["key"] for v in verified} >= {e["key"] for e in exported}
    assert all(v["passed"] and v["agreement"] == 1 for v in verified)
    shown = ok(qnas("verify", copied))
    assert shown.out.startswith(f"Verification passed: {front['chosen']}")


def test_report_is_made_again(copied, qnas):
    for name in ("report.html", "front.png"):
        (copied / name).unlink()
    assert "report.html" in ok(qnas("report", copied, "--quiet")).out
    assert json.loads(ok(qnas("report", copied, "--json")).out) == [
        str(copied / "report.html"),
        str(copied / "front.png"),
    ]
    assert (copied / "report.html").stat().st_size > 10_000


def test_report_of_an_unfinished_run_gives_what_there_is(copied, qnas):
    for path in ("searches", "exports", "stages/01-quantized"):
        shutil.rmtree(copied / path)
    for path in ("trials.sqlite", "report.html"):
        (copied / path).unlink()
    ok(qnas("report", copied))
    assert (copied / "report.html").is_file()


def test_a_drifted_model_fails_verification_with_exit_code_1(copied, front):
    path = copied / "exports" / front["chosen"] / "model.onnx"
    model = onnx.load(path)
    scales = {n.input[1] for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    changed = 0
    for tensor in model.graph.initializer:
        if tensor.name in scales and changed < 3:
            value = numpy_helper.to_array(tensor) * 3
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
            changed += 1
    assert changed
    onnx.save(model, path)
    answer = script("verify", copied, cwd=copied.parent)
    assert answer.code == 1
    assert_readable(answer)
    assert "Verification FAILED" in answer.out
    assert answer.out.count("\n") >= 2  # and says what differs
    stored = json.loads((path.parent / "verify.json").read_text())
    assert stored["passed"] is False


def test_plugins_lists_components(qnas):
    rows = json.loads(ok(qnas("plugins", "--json")).out)
    names = [row["name"] for row in rows["components"] if row["kind"] == "quantizer"]
    assert {"lsq", "multiquant"} <= set(names)
    assert re.search(r"(?m)^space +mbv3 ", ok(qnas("plugins", "--kind", "space")).out)


# --- mistakes ----------------------------------------------------------------------------------------------------


def refused(answer: Answer, *parts, code=2) -> None:
    assert answer.code == code, answer.out + answer.err
    assert answer.out == ""
    assert_readable(answer)
    assert answer.err.count("Error: ") == 1
    message = answer.err.split("Error: ")[1]
    assert message.count("\n") == 1
    assert not PROGRESS.search(answer.err)
    for part in parts:
        assert part in message


MISTAKES = [
    (("run", "--space", "mbv4"), ["'mbv4'", "Did you mean 'mbv3'?", "qnas plugins --kind space"]),
    (
        ("run", "--space", "mbv2", "--space-option", "elastic=false", "--space-option", "kernels=3"),
        ["given besides: kernels"],
    ),
    (
        ("run", "--space", "mbv2", "--init", "missing.pth"),
        ["missing.pth cannot be read: there is no such file", "--init"],
    ),
    (("run", "--quantizer", "lqs"), ["'lqs'", "Did you mean 'lsq'?"]),
    (("run", "--weight-quantizer", "scale-predictor"), ["'scale-predictor'", "'none'", "--folding batch"]),
    (("run", "--quantizer", "scale-predictor"), ["for weights, not for activations", "--weight-quantizer"]),
    (("run", "--quantizer", "batchquant"), ["for activations, not for weights", "--act-quantizer"]),
    (("run", "--quantize", "conv-only", "--folding", "batch"), ["'batch'", "--folding none", "--quantize full"]),
    (("run", "--quantize", "convs"), ["--quantize", "conv-only"]),
    (("run", "--strategy", "evolutoin"), ["Did you mean 'evolution'?"]),
    (("run", "--sampler", "sandwhich"), ["Did you mean 'sandwich'?"]),
    (("run", "--supervision", "soft"), ["'soft'", "hard"]),
    (("run", "--data", "digit"), ["Did you mean 'digits'?", "files", "no file or folder", "/here/digit, either."]),
    (("run", "--data", "../my/pets"), ["'../my/pets'", "Allowed: digits", "no file or folder", "/my/pets, either."]),
    (("run", "--data", "."), ["/here holds no images", "train/CLASS/IMAGE", ".jpg"]),
    (("run", "--data", "files"), ["needs the path of your images", "--data PATH"]),
    (("run", "--data", ".", "--set", "data.options.limt=3"), ["'limt'", "Did you mean 'limit'?", "[data.options]"]),
    (("run", "--recipe", "ofa"), ["'ofa'", "ofa-evolution"]),
    (("run", "--objective", "acuracy"), ["Did you mean 'accuracy'?", "--objective"]),
    (("run", "--objective", "macs", "--objective", "macs"), ["different", "macs, macs", "--objective"]),
    (("run", "--constraint", "bitops<5"), ["'bitops<5'", "NAME<=NUMBER"]),
    (("run", "--constraint", "bitop<=5"), ["Did you mean 'bitops'?"]),
    (("run", "--space-option", "kernel=3"), ["'kernel'", "Did you mean 'kernels'?"]),
    (("run", "--space-option", "kernels=4,6"), ["kernels", "[4, 6]"]),
    (("run", "--space-option", "kernels=4"), ["kernels", "given: [4]", "[3, 5, 7]"]),
    (("run", "--space-option", "kernels=a"), ["kernels", "cannot be 'a'"]),
    (("run", "--space-option", "depths="), ["depths", "cannot be ''"]),
    (("run", "--space-option", "resolutions=8,9000"), ["resolutions", "[8, 9000]"]),
    (("run", "--strategy-option", "population=a"), ["population", "cannot be 'a'", "integer"]),
    (("run", "--set", "quantization.weight_options.per_channel=7"), ["per_channel", "cannot be 7", "boolean"]),
    (("run", "--set", "seed=true"), ["seed", "cannot be True"]),
    (("run", "--space-option", "kernels"), ["NAME=VALUE"]),
    (("run", "--strategy-option", "populaton=3"), ["Did you mean 'population'?"]),
    (("run", "--act", "swish"), ["'swish'", "h-swish"]),
    (("run", "--w-bits", "1,2"), ["w_bits", "2 to 8", "[1, 2]"]),
    (("run", "--w-bits", "a"), ["--w-bits", "'a'", "2,3,4"]),
    (("run", "--bits-granularity", "channel"), ["--bits-granularity", "'layer'"]),
    (("run", "--epochs", "-1"), ["train.epochs", "-1", "greater than or equal to 0"]),
    (("run", "--epochs", "0", "--float-epochs", "0"), ["at least one epoch"]),
    (("run", "--epochs", "two"), ["--epochs", "'two'"]),
    (("run", "--lr", "inf"), ["train.lr", "finite"]),
    (("run", "--evaluations", "0"), ["search.evaluations", "0"]),
    (("run", "--image-size", "4"), ["data.image_size", "4"]),
    (("run", "--set", "trian.lr=1"), ["'trian'", "Did you mean 'train'?"]),
    (("run", "--set", "train.lr"), ["'train.lr'", "NAME=VALUE"]),
    (("run", "--set", "data.search_fraction=0.001"), ["too few", "[data]"]),
    (("run", "--config-file", "absent.toml"), ["absent.toml", "No such file"]),
    (("run", "--epoch", "3"), ["--epoch", "--epochs"]),
    (("run", "extra"), ["extra"]),
    (("runn",), ["'runn'", "Did you mean 'run'?"]),
    (("plugins", "--kind", "quantiser"), ["Did you mean 'quantizer'?"]),
    (("train", "--resume", "nowhere"), ["nowhere", "no run directory"]),
    (("run", "--resume", "nowhere"), ["nowhere", "no run directory", "config.toml"]),
    (("search", "nowhere"), ["nowhere", "no run directory"]),
    (("report", "nowhere"), ["nowhere", "no run directory"]),
    (("search",), ["RUN"]),
]


@pytest.mark.parametrize(("arguments", "parts"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_mistakes_are_told_at_once_and_leave_nothing(qnas, arguments, parts):
    start = time.perf_counter()
    refused(qnas(*arguments), *parts)
    assert time.perf_counter() - start < 10
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("seed = = 1", ["no valid TOML", "line 1"]),
        ("[train]\nepoch = 3", ["'train.epoch'", "Did you mean 'epochs'?"]),
        ("[train]\nepochs = -3", ["train.epochs", "-3"]),
        ("[[train.stages]]\nname = 'a'\nepochs = 1\nlr = 0.1\n" * 2, ["train.stages", "a, a"]),
    ],
)
def test_mistakes_in_a_file_are_told_and_leave_nothing(qnas, tmp_path, content, parts):
    file = tmp_path / "my.toml"
    file.write_text(content)
    refused(qnas("run", "--config-file", file), *parts)
    assert not list(Path.cwd().iterdir())


def test_a_constraint_that_nothing_meets_ends_at_once_and_says_how_close(tmp_path):
    before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    answer = script("run", "--constraint", "bitops<=1000", cwd=tmp_path)
    used = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before
    assert used < 15  # seconds of a processor, whatever else the machine does
    refused(answer, "bitops<=1000", "closest one has bitops=", "Loosen the constraint")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("constraint", ["accuracy>=95", "accuracy<=-1"])
def test_an_accuracy_that_cannot_be_is_told_before_training(qnas, constraint):
    refused(qnas("run", *TINY, "--constraint", constraint), "accuracy", "from 0 to 1")
    assert not list(Path.cwd().iterdir())


def test_a_measured_constraint_that_nothing_meets_says_how_close(copied, qnas):
    answer = qnas("search", copied, "--constraint", "accuracy>=0.9999", "--quiet")
    refused(answer, "accuracy>=0.9999", "the closest", "has accuracy=")


def test_an_existing_folder_is_not_overwritten(copied, qnas):
    before = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()}
    refused(qnas("run", "--out", copied, *TINY), "not an empty folder", "--resume")
    assert {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()} == before


def test_resume_refuses_other_settings_by_name(copied, qnas, tmp_path):
    refused(qnas("run", "--resume", copied, "--lr", "0.5"), "train.lr", "0.006", "0.5")
    refused(qnas("run", "--resume", copied, "--recipe", "ofa-evolution"), "--recipe")
    file = tmp_path / "other"
    file.mkdir()
    refused(qnas("run", "--resume", file), "no run directory")


def test_search_cannot_change_the_supernet(copied, qnas):
    refused(qnas("search", copied, "--set", "train.lr=0.5"), "train.lr", "Only search.*")
    refused(qnas("search", copied, "--strategy-option", "populaton=3"), "Did you mean 'population'?")
    assert not (copied / "searches" / "02-evolution").exists()


def test_commands_without_a_trained_supernet_say_what_to_run(copied, qnas):
    shutil.rmtree(copied / "stages")
    for arguments in (("search",), ("evaluate", "--config", "largest"), ("export", "--config", "largest")):
        command, *rest = arguments
        refused(qnas(command, copied, *rest, "--quiet"), "not trained to the end", "qnas train --resume")


def test_verify_without_an_export_says_what_to_run(copied, qnas):
    shutil.rmtree(copied / "exports")
    refused(qnas("verify", copied), "no exported model", "qnas export")
    refused(qnas("verify", copied, "--all"), "no exported model", "qnas export")


def test_wrong_subnets_are_refused(run, front, qnas, tmp_path):
    refused(qnas("evaluate", run, "--config", "nokey"), "nokey", "no trial's key")
    refused(qnas("export", run, "--config", "nokey"), "nokey", "no trial's key")
    refused(qnas("evaluate", run, "--split", "train"), "'train'", "'search', 'test'")
    file = tmp_path / "mine.toml"
    sample = front["points"][0]["sample"]
    for change, parts in (
        ({"w_bit": 4}, ["'w_bit'", "Did you mean 'w_bits'?"]),
        ({"w_bits": 7}, ["'w_bits'", "7", "[2, 3, 4]"]),
    ):
        file.write_text("\n".join(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in {**sample, **change}.items()))
        refused(qnas("evaluate", run, "--sample", file), *parts)
    file.write_text("w_bits = 4\n")
    refused(qnas("evaluate", run, "--sample", file), "lacks knob")
    refused(qnas("evaluate", run, "--sample", tmp_path / "absent.toml"), "absent.toml", "No such file")


def test_a_run_in_use_is_refused(copied, qnas):
    from qnas.store import RunDirectory

    with RunDirectory(copied):
        refused(qnas("report", copied), "in use by another qnas process")


def test_flags_that_contradict_one_another_are_refused(qnas):
    refused(qnas("run", "--seed", "1", "--set", "seed=2"), "--set", "seed", "2", "1", "Leave one of them out")
    for command in ("export", "verify"):
        refused(qnas(command, "run", "--all", "--config", "largest"), "--config largest", "--all")
    assert not list(Path.cwd().iterdir())
