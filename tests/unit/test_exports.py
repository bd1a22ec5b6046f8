"""The folder of exported subnets: written, verified, listed; a verification speaks of the model that is there."""

from __future__ import annotations

import json

import onnx
import pytest

from qnas.errors import StoreError
from qnas.evaluate import Evaluator, EvaluatorSettings
from qnas.exports import Exports, list_exports
from qnas.store import CONFIG, RunDirectory


@pytest.fixture
def exports(tmp_path, make_space, make_supernet, tiny_data, registry):
    space = make_space(num_classes=2, depths=(1,), kernels=(3,), resolutions=(16,), se=False, act="relu")
    evaluator = Evaluator(
        make_supernet(space).eval(),
        tiny_data,
        registry.load("task", "classification")(),
        [registry.load("calibrator", "bn")()],
        {},
        EvaluatorSettings(calibration_images=60, calibration_batch=30),
    )
    (tmp_path / CONFIG).touch()
    with RunDirectory(tmp_path) as store:
        yield Exports(store, evaluator, registry.load("device", "onnxruntime")(), "onnxruntime")


def test_what_is_written_is_listed_with_its_verification(exports):
    space, store = exports.evaluator.supernet.space, exports.store
    assert list_exports(store) == []
    written = [exports.export(sample) for sample in (space.highest(), space.lowest())]
    assert [e["key"] for e in list_exports(store)] == sorted(e["key"] for e in written)
    assert all(e["verify"] is None for e in list_exports(store))
    verified = exports.verify(space.lowest())
    assert verified["passed"]
    listed = {e["key"]: e["verify"] for e in list_exports(store)}
    assert listed == {written[0]["key"]: None, written[1]["key"]: verified}
    for export in written:
        assert (store.path / export["onnx"]).stat().st_size == export["onnx_bytes"]
        assert json.loads((store.path / "exports" / export["key"] / "export.json").read_text()) == export
        model = onnx.load(store.path / export["onnx"])
        told = {p.key: p.value for p in model.metadata_props}
        assert told["qnas.config"] == export["key"]
        assert json.loads(told["qnas.sample"]) == export["sample"]
        assert json.loads(told["qnas.classes"]) == ["left", "right"]


def test_a_model_that_is_written_anew_is_not_verified(exports):
    sample = exports.evaluator.supernet.space.highest()
    exports.export(sample)
    exports.verify(sample)
    exports.export(sample)
    assert list_exports(exports.store)[0]["verify"] is None


@pytest.mark.parametrize("missing", ["everything", "model.onnx", "export.json"])
def test_what_was_not_exported_cannot_be_verified(exports, missing):
    sample = exports.evaluator.supernet.space.highest()
    key = exports.evaluator.supernet.space.key(sample)
    if missing != "everything":
        exports.export(sample)
        (exports.store.export_directory(key) / missing).unlink()
    with pytest.raises(StoreError, match=rf"no exported model of subnet {key}.*Run `qnas export .* --config {key}`"):
        exports.verify(sample)
