"""The scripts behind docs/results run, quickly, from beginning to end, and go on where they stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "reproduce"


def reproduce(name, folder, *arguments):
    command = [sys.executable, BENCHMARKS / name, "--quick", "--work", folder / "work", "--out", folder / "out.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out.json").read_text())


def test_oqat(tmp_path):
    first = reproduce("oqat.py", tmp_path, "--parts", "train")
    assert "ranks" not in first["seeds"]["0"]
    value = reproduce("oqat.py", tmp_path)
    found = value["seeds"]["0"]
    assert found["arms"] == first["seeds"]["0"]["arms"]  # nothing is trained or judged again
    passes = {arm: round(v["image_passes"]) for arm, v in found["arms"].items()}
    assert len(set(passes.values())) == 1  # equal budgets
    assert set(found["ranks"]["tau"]) == {"4-bit", "3-bit", "2-bit"}
    assert len(found["ranks"]["scores"]["float"]) == found["ranks"]["num_configs"]
    assert found["retrained"]["passes"]["float"] > found["retrained"]["passes"]["finetuned"] > 0
    assert not value["summary"]["arms"]["inherit - direct, largest"]["resolved"]  # one seed resolves nothing
    text = (tmp_path / "out.md").read_text()
    assert "not resolved" in text
    assert text.count("### ") == 8


def test_oqat_recipes(tmp_path):
    value = reproduce("oqat_recipes.py", tmp_path)
    assert [run["name"] for run in value["runs"]] == ["nas-then-quantize-0", "search-then-retrain-0", "oqat-0"]
    assert all(run["image_passes"] > 0 for run in value["runs"])
    assert value["metric"] == "accuracy"


def test_multiquant_sampling(tmp_path):
    value = reproduce("multiquant_sampling.py", tmp_path)
    assert len(value["spaces"]) == 2
    for weightings in value["spaces"].values():
        assert set(weightings) == {"layers", "parameters", "macs", "features"}
        for found in weightings.values():
            uniform, spread = (found["datasets"][kind]["w_bits"] for kind in ("uniform", "monte_carlo"))
            assert min(spread) > 0 == min(uniform)
            for rows in found["draws"].values():
                assert all(row["monte_carlo_met"] == 1 and row["monte_carlo"] < 30 for row in rows)
                assert rows[0]["exact"] > 50 * rows[0]["monte_carlo"]
    assert (tmp_path / "out.md").read_text().count("Mean draws for one subnet") == 16


def test_multiquant(tmp_path):
    arms = ("--arms", "qat-2,adaptive,anyprecision,robustquant")
    first = reproduce("multiquant.py", tmp_path, *arms, "--parts", "train")
    assert not first["summary"]["uniform"]
    value = reproduce("multiquant.py", tmp_path, *arms)
    found = value["seeds"]["0"]
    passes = {arm: at["passes"] for arm, at in found["arms"].items()}
    assert passes == {arm: at["passes"] for arm, at in first["seeds"]["0"]["arms"].items()}  # nothing is trained again
    assert passes["base"] < passes["qat-2"] < passes["adaptive"]
    assert set(found["arms"]["qat-2"]["uniform"]["recalibrated"]) == {"2"}
    assert set(found["arms"]["anyprecision"]["uniform"]["recalibrated"]) == {"2", "4", "8"}
    assert set(found["arms"]["adaptive"]["competition"]) == {"history", "hard", "adaptive"}
    at = found["mixed"]["searched"]["4"]
    assert at["mixed"]["bitops"] < 1.4 * at["uniform"]["bitops"]
    assert sum(at["w_bits"]) <= 4 * len(at["w_bits"])
    assert (tmp_path / "out.md").read_text().count("### ") == 8


def test_quantnas_latency(tmp_path):
    value = reproduce("quantnas_latency.py", tmp_path)
    found = value["nets"]["MobileNetV2"]
    assert set(found) == {"float", "conv-only", "full"}
    assert all(entry["low"] <= entry["ms"] <= entry["high"] for entry in found.values())
    assert found["full"]["operators"]["QuantizeLinear"] == found["full"]["operators"]["DequantizeLinear"] == 1
    assert found["float"]["operators"].get("QLinearConv", 0) == 0
    assert found["conv-only"]["operators"]["QLinearConv"] == found["full"]["operators"]["QLinearConv"]


def test_quantnas(tmp_path):
    first = reproduce("quantnas.py", tmp_path, "--parts", "train")
    assert not first["summary"]["ranks"]
    value = reproduce("quantnas.py", tmp_path)
    found = value["seeds"]["0"]["arms"]
    assert {arm: at["history"] for arm, at in found.items()} == {
        arm: at["history"] for arm, at in first["seeds"]["0"]["arms"].items()
    }  # nothing is trained again
    like = found["shared-8"]["statistics"]["layers"]["stem"]
    assert all(0 < like[kind]["cosine"] <= 1.000001 for kind in ("subnets", "moving", "batch"))
    assert like["batch"]["error"] < like["moving"]["error"]
    for arm in ("shared-8", "predicted-8", "shared-4", "predicted-4"):
        assert min(found[arm]["scales"]["spread"].values()) >= 1
        assert set(found[arm]["ranks"]["accuracies"]) == {"given", "shared", "fitted", "tuned"}
    shared = found["shared-8"]["ranks"]["accuracies"]
    assert shared["given"] == shared["shared"]  # a learned scale is one for all subnets
    assert found["predicted-8"]["front"]["points"]
    assert (tmp_path / "out.md").read_text().count("### ") == 6


def test_quantnas_detection(tmp_path):
    value = reproduce("quantnas_detection.py", tmp_path)
    found = value["seeds"]["0"]
    assert set(found) == {"float", "shared", "predicted"}
    assert (found["float"]["stage"], found["shared"]["stage"]) == ("float", "quantized")
    assert all(set(arm["metrics"]["test"]) == {"mAP", "mAP50", "mAP75"} for arm in found.values())
    assert len({json.dumps(arm["settings"], sort_keys=True) for arm in found.values()}) == 1  # all alike
    assert found["float"]["bitops"] > found["shared"]["bitops"]
    assert value["summary"]["shared"]["against shared"]["value"] == 0
    first = (tmp_path / "out.json").read_bytes()
    assert reproduce("quantnas_detection.py", tmp_path) == value  # nothing is trained again
    assert (tmp_path / "out.json").read_bytes() == first


def test_basq(tmp_path):
    arms = ("--arms", "basq,equal,pact-1e-2")
    first = reproduce("basq.py", tmp_path, *arms, "--parts", "train")
    assert set(first["summary"]["basq"]) == {"loss"}
    value = reproduce("basq.py", tmp_path, *arms)
    found = value["seeds"]["0"]["arms"]
    assert {arm: at["history"] for arm, at in found.items()} == {
        arm: at["history"] for arm, at in first["seeds"]["0"]["arms"].items()
    }  # nothing is trained again
    assert len(found["basq"]["clips"]["alphas"]) == len(found["equal"]["clips"]["alphas"]) == 7
    assert len({name.split(": ")[1] for name in found["equal"]["clips"]["alphas"]}) == 1
    assert len(found["pact-1e-2"]["clips"]["alphas"]) == 1
    assert "spread" not in found["pact-1e-2"]  # there is nothing to choose
    assert found["basq"]["search"]["evaluations"] == 6
    assert found["pact-1e-2"]["search"]["evaluations"] < 6  # two resolutions are all that there is
    for at in found.values():
        assert 0 <= at["finetune"]["after"] <= 1
    assert (tmp_path / "out.md").read_text().count("### ") == 4
