"""What a run stands for: its retrained nets, all of its stages, or one search; and what its training took."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from qnas.compare import compare_runs
from qnas.compare.entries import read_entries
from qnas.compare.fronts import joint_front, supernet_passes
from qnas.compare.result import compare
from qnas.errors import ConfigError, StoreError
from qnas.files import write_json
from qnas.hypervolume import hypervolume
from qnas.protocols import Objective
from qnas.retrained import bits_said
from qnas.statistics import paired, standard_error

SEARCH = [(1_000_000, 200, 196), (3_000_000, 320, 310)]
STAGES = {
    "train": {"stages": [{"name": "a", "epochs": 1, "lr": 1.0}, {"name": "b", "epochs": 1, "lr": 1.0}]},
    "search": {"stages": ["a", "b"]},
}
RETRAIN = {"retrain": {"points": "chosen", "bits": [4]}}
MACS = ({"name": "accuracy", "direction": "max"}, {"name": "macs", "direction": "min"})


def box(bitops):
    return {"search": 0.5, "reference": {"accuracy": 0.0, "bitops": bitops}, "ideal": {"accuracy": 1.0, "bitops": 0.0}}


@pytest.fixture
def oqat(tmp_path, make_run):
    """A run that searches two stages."""
    path = tmp_path / "oqat"
    make_run(path, [(1_000_000, 200, 196), (3_000_000, 320, 310)], settings=STAGES, stage="a", hypervolume=box(9e6))
    return make_run(path, [(500_000, 150, 140), (900_000, 230, 240)], settings=STAGES, stage="b", hypervolume=box(3e6))


@pytest.fixture
def trained_again(tmp_path, make_run, answers):
    """A run of a float search with two nets that were trained again."""
    path = make_run(tmp_path / "nas", SEARCH, settings=RETRAIN, objectives=MACS)
    ids = []
    for i, (bitops, right, passes) in enumerate(((800_000, (210, 205), 500.0), (2_500_000, (330, 333), 250.0))):
        name = f"{i:016x}-supernet-01234567"
        bits = {split: answers(n, 7 * i) for split, n in zip(("search", "test"), right, strict=True)}
        metrics = {s: {"accuracy": float(b.mean()), "bitops": bitops, "size_bytes": bitops} for s, b in bits.items()}
        value = {
            "key": f"net{i}",
            "sample": {"depth": i},
            "metric": "accuracy",
            "metrics": metrics,
            "standard_error": {s: standard_error(m["accuracy"], 400) for s, m in metrics.items()},
            "num_images": {"search": 400, "test": 400},
            "correct": {s: np.packbits(b).tobytes().hex() for s, b in bits.items()},
            "image_passes": passes,
        }
        write_json(path / "alone" / name / "result.json", value)
        ids.append({"id": name, "search": "01-random", "searched_key": "nas1", "bits": 4})
    write_json(path / "retrain.json", {"points": "chosen", "nets": ids, "hypervolume": box(5e6)})
    return path


def checkpoint(path, passes):
    path.parent.mkdir(parents=True)
    save_file({"x": np.zeros(2)}, path, {"qnas": json.dumps({"progress": {"image_passes": passes}})})


def test_stages_that_are_searched_count_together(oqat, tmp_path, make_run):
    other = make_run(tmp_path / "other", SEARCH)
    (entry, _) = read_entries([oqat, other])
    assert {p["key"] for p in entry.points} == {"oqata1", "oqatb0", "oqatb1"}  # b1 is better than a0 for less
    assert entry.front["search"] == "01-random + 02-random"
    assert entry.front["evaluations"] == 4
    assert entry.front["chosen"] == "oqata1"
    assert len(entry.met) == 4
    assert {key: int(bits.sum()) for key, bits in entry.answers.items()} == {
        "oqata1": 310,
        "oqatb0": 140,
        "oqatb1": 240,
    }
    assert entry.front["hypervolume"]["reference"] == {"accuracy": 0.0, "bitops": 9e6}
    (one, _) = read_entries([oqat / "searches" / "01-random", other])
    assert {p["key"] for p in one.points} == {"oqata0", "oqata1"}


def test_the_joint_front_dominates_what_the_fronts_dominate_together(oqat):
    fronts = [json.loads((oqat / f"searches/0{i}-random/front.json").read_text()) for i in (1, 2)]
    objectives = [Objective("accuracy", "max"), Objective("bitops", "min")]
    points = [p["metrics"] for front in fronts for p in front["points"]]
    joint = [p["metrics"] for p in joint_front(oqat, fronts)["points"]]
    corners = (box(9e6)["reference"], box(9e6)["ideal"])
    assert len(joint) < len(points)
    assert hypervolume(joint, objectives, *corners) == hypervolume(points, objectives, *corners)


def test_stages_that_are_not_all_searched_are_refused(tmp_path, make_run):
    path = make_run(tmp_path / "half", SEARCH, settings=STAGES, stage="a")
    other = make_run(tmp_path / "other", SEARCH)
    with pytest.raises(StoreError, match=r"has not finished that of b.*--resume.*searches/01-random"):
        read_entries([path, other])
    assert len(read_entries([path / "searches" / "01-random", other])) == 2
    make_run(path, SEARCH, settings=STAGES, stage="b", objectives=MACS)
    with pytest.raises(ConfigError, match=r"01-random and 02-random, differ in their objectives"):
        read_entries([path, other])


def test_retrained_nets_stand_for_their_run_under_the_objectives_of_the_others(oqat, trained_again, answers):
    checkpoint(trained_again / "stages/00-float/checkpoint.safetensors", 1000.0)
    found = compare(read_entries([trained_again, oqat]), "bitops", [1_000_000, 3_000_000])
    first, second = found["runs"]
    assert [o["name"] for o in found["objectives"]] == ["accuracy", "bitops"]
    assert [p["key"] for p in first["points"]] == ["net1", "net0"]
    assert (first["search"], first["strategy"], first["chosen"]) == ("nets trained again", "random", "net1")
    assert first["image_passes"] == 1000 + 500 + 250
    assert second["image_passes"] is None  # no checkpoint is left
    assert found["box"]["reference"] == {"accuracy": 0.0, "bitops": 9e6}
    small, large = found["pairs"]
    assert small["keys"] == ["net0", "oqatb1"]
    assert small["p_value"] == paired(answers(205, 0), answers(240, 7)).p_value
    assert large["value"] == pytest.approx((333 - 310) / 400)


def test_retrained_nets_alone_are_compared_by_accuracy_and_the_cost(trained_again, tmp_path):
    import shutil

    other = shutil.copytree(trained_again, tmp_path / "again")
    found = compare(read_entries([trained_again, other]), "size_bytes")
    assert [(o["name"], o["direction"]) for o in found["objectives"]] == [("accuracy", "max"), ("size_bytes", "min")]
    assert found["runs"][0]["hypervolume"] == found["runs"][1]["hypervolume"]
    with pytest.raises(ConfigError, match="cost 'latency' does not exist"):
        compare(read_entries([trained_again, other]), "latency")


def test_a_run_whose_nets_are_not_trained_stands_for_its_search(trained_again, oqat):
    (searched, _) = read_entries([trained_again / "searches" / "01-random", oqat])
    assert {p["key"] for p in searched.points} == {"nas0", "nas1"}
    (trained_again / "retrain.json").unlink()
    with pytest.raises(ConfigError, match=r"objectives of nas is accuracy .max., macs .min."):
        compare(read_entries([trained_again, oqat]), "bitops")


@pytest.mark.parametrize("name", ["../../nas", "0123456789abcdef-supernet-01234567"])
def test_nets_that_are_not_there_are_refused(trained_again, oqat, name):
    value = json.loads((trained_again / "retrain.json").read_text())
    value["nets"][0]["id"] = name
    write_json(trained_again / "retrain.json", value)
    with pytest.raises(StoreError, match=r"names no net of|does not fit the nets in"):
        read_entries([trained_again, oqat])


def test_passes_are_those_of_the_last_stage(tmp_path):
    assert supernet_passes(tmp_path) is None
    for i, passes in enumerate((10.0, 30.5)):
        checkpoint(tmp_path / f"stages/0{i}-s/checkpoint.safetensors", passes)
    assert supernet_passes(tmp_path) == 30.5
    last = tmp_path / "stages/01-s/checkpoint.safetensors"
    for wrong in (b"", b"\xff" * 8, (2).to_bytes(8, "little") + b"{}"):
        last.write_bytes(wrong)
        with pytest.raises(StoreError, match="does not say how long it was trained"):
            supernet_passes(tmp_path)


def test_no_torch_is_needed(trained_again, oqat, tmp_path):
    code = (
        "import sys; from pathlib import Path; from qnas.compare import compare_runs; "
        "compare_runs([Path(sys.argv[1]), Path(sys.argv[2])], Path(sys.argv[3])); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, trained_again, oqat, tmp_path / "out"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_the_page_has_the_passes(trained_again, oqat, tmp_path):
    checkpoint(trained_again / "stages/00-float/checkpoint.safetensors", 1_250_000.0)
    found = compare_runs([trained_again, oqat], tmp_path / "out")
    assert found["runs"][0]["image_passes"] == 1_250_750
    assert '<td class="num">1.25 M</td>' in (tmp_path / "out/compare.html").read_text()


def test_bits_in_words():
    assert bits_said({"w_bits": 4, "a_bits": 4, "depth": 1}) == "4"
    assert bits_said({"a.w_bits": 2, "b.w_bits": 4, "a.a_bits": 3, "b.a_bits": 3}) == "w 2-4, a 3"
    assert bits_said({"w_bits": 32, "a_bits": 32}) == "float"
    assert bits_said({}) == ""
