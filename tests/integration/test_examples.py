"""The examples work as their READMEs say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qnas.config import load_config, read_toml
from qnas.plugins import load_registry
from qnas.run import Run
from qnas.testing import check_quantizer

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def power2(tmp_path, monkeypatch):
    """Installs the package as pip would: its folder on the path, its metadata beside it."""
    source = EXAMPLES / "third_party_plugin"
    info = tmp_path / "qnas_power_of_two-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: qnas-power-of-two\nVersion: 0.1.0\n")
    project = read_toml(source / "pyproject.toml")["project"]
    points = "\n".join(f"{name} = {target}" for name, target in project["entry-points"]["qnas"].items())
    (info / "entry_points.txt").write_text(f"[qnas]\n{points}\n")
    for folder in (tmp_path, source):
        monkeypatch.syspath_prepend(str(folder))
    yield "power2"
    for name in [n for n in sys.modules if n.split(".")[0] == "power_of_two"]:
        del sys.modules[name]


def test_third_party_quantizer_keeps_the_contract_and_runs(power2, tmp_path):
    registry = load_registry()
    component = registry.find("quantizer", power2)
    assert component.owner == "qnas-power-of-two:power_of_two"
    check_quantizer(component.load())
    config = load_config(
        {
            "threads": 1,
            "quantization": {"weight_quantizer": power2},
            "train": {"float_epochs": 1, "epochs": 2},
            "search": {"evaluations": 3},
            "space": {"options": {"depths": 1, "kernels": 3, "se": False, "act": "relu"}},
        }
    )
    with Run.create(tmp_path / "run", config, registry) as run:
        run.train()
        run.search()
        sample = run.resolve(None)
        run.export(sample)
        assert run.verify(sample)["passed"]


def test_contributing_shows_the_example_as_it_is():
    shown = (EXAMPLES.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = (EXAMPLES / "third_party_plugin" / "power_of_two" / "quantizer.py").read_text(encoding="utf-8")
    for line in code.splitlines():
        statement = line.strip()
        if statement and not statement.startswith(('"""', "#", "from __future__")):
            assert statement in shown, f"CONTRIBUTING.md lacks {statement!r}"


def test_mixed_bits_configuration_is_valid(make_space):
    config = load_config(read_toml(EXAMPLES / "mixed_bits" / "mixed.toml"))
    assert config.quantization.granularity == "layer"
    assert config.search.objectives == ("accuracy", "size_bytes")


def test_a_network_of_ones_own_becomes_a_space(monkeypatch):
    from qnas.factories import find_factory
    from qnas.space import QuantScheme

    monkeypatch.chdir(EXAMPLES / "own_network")
    readme = (EXAMPLES / "own_network" / "README.md").read_text()
    assert "--space module:digit_net:DigitNet" in readme
    space = load_registry().load("space", "module")(
        QuantScheme((2, 4), (2, 4), "layer"), image_size=16, num_classes=10, image_channels=1,
        source="digit_net:DigitNet", factory=find_factory("digit_net:DigitNet"), factory_options={"width": 24},
        skip="blocks.0.*",
    )  # fmt: skip
    labels = {knob.label for knob in space.knobs}
    assert "blocks.1.coarse.0.w_bits" in labels
    assert not any(label.startswith("blocks.0") for label in labels)
    assert {spec.out_channels for spec in space.layers(space.lowest()) if spec.kind == "conv"} == {24, 12}
