"""The registry: what is installed is found, and what is broken, double or misspelt is named."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from qnas.errors import PluginError, unknown_name
from qnas.hookspecs import KINDS, ComponentSpec, hookimpl
from qnas.plugins import load_registry

BUILT_IN = {
    "space": {
        "basq-mbv1",
        "basq-mbv2",
        "basq-resnet18",
        "basq-resnet20",
        "mbv1",
        "mbv2",
        "mbv3",
        "module",
        "resnet18",
        "resnet20",
        "resnet50",
    },
    "quantizer": {"lsq", "minmax"},
    "sampler": {"lrh", "monte-carlo", "sandwich", "uniform"},
    "supervision": {"hard", "inplace-distillation"},
    "calibrator": {"bn", "minmax", "percentile", "mse", "entropy", "lapq"},
    "strategy": {
        *("evolution", "genetic", "nsga2", "random"),
        *("optuna:tpe", "optuna:gp", "optuna:nsgaii", "optuna:nsgaiii", "optuna:qmc"),
    },
    "cost": {
        *("macs", "bitops", "oqat_flops", "size_bytes"),
        *(f"avg_{role}{by}" for role in ("w_bits", "a_bits") for by in ("", "_parameters", "_macs", "_features")),
    },
    "predictor": {"mlp"},
    "dataset": {"digits", "files"},
    "task": {"classification"},
    "device": {"onnxruntime"},
    "recipe": {
        "ofa-evolution",
        "oqat",
        "nas-then-quantize",
        "search-then-retrain",
        "ptq",
        "multiquant",
        "anyprecision",
        "robustquant",
    },
}


def plugin(*specs):
    """Return a plugin module that yields the given components."""
    module = types.ModuleType("fake")

    @hookimpl
    def qnas_components():
        yield from specs

    module.qnas_components = qnas_components
    return module


def owned(registry, owner):
    return [c for c in registry.components() if c.owner == owner]


# --- what is installed ---------------------------------------------------------------------------------------------


def test_built_ins_come_through_the_entry_points_of_the_distribution(registry):
    assert not registry.broken
    assert not registry.duplicates()
    assert set(BUILT_IN) == set(KINDS)
    for kind, names in BUILT_IN.items():
        assert names <= set(registry.names(kind))
        for name in names:
            assert registry.find(kind, name).owner in ("qnas:plugins", "qnas:search_spaces", "qnas:strategies")


def test_every_registered_target_imports_and_has_a_summary(registry):
    for component in registry.components():
        assert component.load() is not None
        assert component.spec.summary
        assert "\n" not in component.spec.summary


def test_components_are_listed_in_a_fixed_order(registry):
    listed = registry.components()
    assert listed == load_registry().components()
    assert [c.spec for c in listed] == sorted(c.spec for c in listed)
    assert registry.components("cost") == [c for c in listed if c.spec.kind == "cost"]


def test_listing_imports_no_target():
    code = (
        "import sys; from qnas.plugins import load_registry; registry = load_registry(); "
        "assert len(registry.components()) >= 10; "
        "targets = {c.spec.target.partition(':')[0] for c in registry.components()}; "
        "print(sorted(targets & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


# --- foreign plugins ---------------------------------------------------------------------------------------------


def test_a_new_component_stands_beside_the_built_ins():
    registry = load_registry([("more:plugin", plugin(ComponentSpec("cost", "one", "math:pi", "Pi")))])
    assert registry.find("cost", "one").owner == "more:plugin"
    assert registry.load("cost", "one") == pytest.approx(3.14159, abs=1e-5)
    assert "bitops" in registry.names("cost")


def test_a_hook_that_raises_is_set_aside_alone():
    module = types.ModuleType("raising")

    @hookimpl
    def qnas_components():
        yield ComponentSpec("cost", "first", "math:pi", "Yielded before the fault")
        raise RuntimeError("out of luck")

    module.qnas_components = qnas_components
    registry = load_registry([("bad:plugin", module), ("good:plugin", plugin(ComponentSpec("cost", "x", "m:n", "")))])
    assert [(b.owner, b.reason) for b in registry.broken] == [("bad:plugin", "RuntimeError: out of luck")]
    assert not owned(registry, "bad:plugin")
    assert owned(registry, "good:plugin")
    assert registry.find("cost", "bitops")
    with pytest.raises(PluginError, match="Plugin 'bad:plugin' was set aside: RuntimeError: out of luck"):
        registry.find("cost", "first")


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Returns a function that installs a distribution of one module."""

    def install(name, module, source):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[qnas]\nplugins = {module}\n")
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))

    yield install
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_a_module_that_fails_at_import_is_set_aside_alone(distribution):
    distribution("broken", "qnas_test_broken", "raise ImportError('needs libfoo')\n")
    registry = load_registry()
    assert [(b.owner, b.reason) for b in registry.broken] == [("broken:plugins", "ImportError: needs libfoo")]
    for kind, names in BUILT_IN.items():
        assert names <= set(registry.names(kind))


def test_equal_entry_point_names_of_two_distributions_are_both_loaded(distribution):
    source = (
        "from qnas.hookspecs import ComponentSpec, hookimpl\n"
        "@hookimpl\ndef qnas_components():\n    yield ComponentSpec('cost', 'theirs', 'math:pi', 'Pi')\n"
    )
    distribution("another", "qnas_test_another", source)  # its entry point is named `plugins`, as one of qnas is
    registry = load_registry()
    assert registry.find("cost", "theirs").owner == "another:plugins"
    assert registry.find("cost", "macs").owner == "qnas:plugins"
    assert not registry.broken


@pytest.mark.parametrize("target", ["no_such_module_of_qnas:Thing", "math:no_such_attribute"])
def test_a_target_that_does_not_import_fails_only_when_used(target):
    registry = load_registry([("bad:plugin", plugin(ComponentSpec("quantizer", "ghost", target, "Not there")))])
    assert "ghost" in registry.names("quantizer")
    assert not registry.broken
    with pytest.raises(PluginError) as error:
        registry.load("quantizer", "ghost")
    for part in ("'ghost'", "'bad:plugin'", target, "no_such", "Repair or uninstall"):
        assert part in str(error.value)


def test_two_plugins_of_one_name_are_refused_on_use_and_listed():
    spec = ComponentSpec("cost", "twice", "math:pi", "")
    registry = load_registry([("a:plugin", plugin(spec)), ("b:plugin", plugin(spec))])
    assert [c.owner for c in registry.components("cost") if c.spec.name == "twice"] == ["a:plugin", "b:plugin"]
    assert registry.names("cost").count("twice") == 1
    assert [[c.owner for c in group] for group in registry.duplicates()] == [["a:plugin", "b:plugin"]]
    with pytest.raises(PluginError, match=r"cost 'twice': 'a:plugin' and 'b:plugin'\. Uninstall one"):
        registry.load("cost", "twice")
    assert registry.load("cost", "bitops") is not None


def test_one_name_in_two_kinds_is_no_conflict():
    registry = load_registry([("a:plugin", plugin(ComponentSpec("cost", "evolution", "math:pi", "")))])
    assert not registry.duplicates()
    assert registry.find("strategy", "evolution").owner.startswith("qnas:")


# --- what authors get wrong --------------------------------------------------------------------------------------


def reason(module):
    (broken,) = load_registry([("bad:plugin", module)]).broken
    assert broken.owner == "bad:plugin"
    return broken.reason


def test_a_misspelt_hook_is_set_aside_with_the_right_name():
    module = types.ModuleType("misspelt")

    @hookimpl
    def qnas_componets():
        return []

    module.qnas_componets = qnas_componets
    assert "'qnas_componets' does not exist. Did you mean 'qnas_components'?" in reason(module)


def test_a_plugin_without_hooks_is_told_what_it_forgot():
    assert "hookimpl" in reason(types.ModuleType("empty"))
    undecorated = types.ModuleType("undecorated")
    undecorated.qnas_components = lambda: []
    assert "hookimpl" in reason(undecorated)


def test_a_hook_with_wrong_arguments_is_set_aside():
    module = types.ModuleType("arguments")

    @hookimpl
    def qnas_components(registry):
        return []

    module.qnas_components = qnas_components
    assert "registry" in reason(module)


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        (ComponentSpec("quantiser", "x", "math:pi", ""), "'quantiser' does not exist. Did you mean 'quantizer'?"),
        (ComponentSpec("cost", "", "math:pi", ""), "must not be empty"),
        (ComponentSpec("cost", "a/b", "math:pi", ""), "hold '/'"),
        (ComponentSpec("cost", "x", "math.pi", ""), "'module:attribute'"),
        ("a string", "no ComponentSpec"),
    ],
)
def test_a_wrong_component_sets_its_plugin_aside(spec, part):
    assert part in reason(plugin(spec))


# --- what users get wrong ----------------------------------------------------------------------------------------


def test_unknown_names_come_with_the_nearest_and_all(registry):
    with pytest.raises(PluginError) as error:
        registry.find("strategy", "evolutoin")
    names = registry.names("strategy")
    assert names == sorted(names)
    assert {"evolution", "nsga2", "optuna:tpe", "random"} <= set(names)
    assert str(error.value) == (
        f"The strategy 'evolutoin' does not exist. Did you mean 'evolution'? Allowed: {', '.join(names)}. "
        "List them with `qnas plugins --kind strategy`."
    )
    with pytest.raises(PluginError, match=r"'zzz' does not exist\. Allowed"):
        registry.find("strategy", "zzz")


def test_unknown_kinds_come_with_the_nearest(registry):
    for ask in (registry.components, registry.names):
        with pytest.raises(PluginError, match="Did you mean 'quantizer'"):
            ask("quantizers")


def test_an_unknown_name_among_none():
    assert unknown_name("The x", "a", [], "Go.") == "The x 'a' does not exist. Allowed: none. Go."
