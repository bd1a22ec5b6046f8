"""The configuration: TOML round trips, ranks of its sources, and sentences for every mistake."""

from __future__ import annotations

import re

import click
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from qnas import components
from qnas.cli import options, resolve
from qnas.config import (
    RunConfig,
    SearchConfig,
    StageConfig,
    default_threads,
    flat,
    load_config,
    merge,
    nested,
    parse_setting,
    read_settings,
    read_toml,
    tomllib,
)
from qnas.errors import ConfigError
from qnas.retrain import check_retrain

# --- round trips -------------------------------------------------------------------------------------------------

POSITIVE = st.floats(1e-12, 1e12)
OPTIONS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.one_of(st.integers(-(2**40), 2**40), st.booleans(), st.text(max_size=8), st.lists(st.integers(0, 9))),
    max_size=3,
)
STAGES = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True),
            "epochs": st.integers(1, 500),
            "lr": POSITIVE,
            "quantize": st.booleans(),
        }
    ),
    max_size=3,
    unique_by=lambda stage: stage["name"],
)
CONFIGS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "threads": st.one_of(st.none(), st.integers(1, 64)),
        "data": st.fixed_dictionaries(
            {
                "name": st.text(min_size=1, max_size=10),
                "image_size": st.one_of(st.none(), st.integers(8, 1024)),
                "search_fraction": st.floats(0.01, 0.49),
                "options": OPTIONS,
            }
        ),
        "quantization": st.fixed_dictionaries(
            {
                "w_bits": st.lists(st.integers(2, 8), min_size=1),
                "granularity": st.sampled_from(["network", "stage", "block", "layer"]),
                "weight_options": OPTIONS,
            }
        ),
        "train": st.fixed_dictionaries({"epochs": st.integers(1, 500), "lr": POSITIVE, "stages": STAGES}),
        "search": st.fixed_dictionaries(
            {
                "objectives": st.lists(st.text(max_size=8), max_size=3),
                "constraints": st.lists(st.text(max_size=20), max_size=3),
            }
        ),
        "space": st.fixed_dictionaries({"options": OPTIONS}),
    }
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values=CONFIGS)
def test_toml_gives_back_an_equal_configuration(values):
    config = load_config(values)
    text = config.to_toml()
    assert load_config(tomllib.loads(text)) == config
    assert load_config(tomllib.loads(text)).to_toml() == text


def test_the_defaults_are_written_out_whole():
    written = flat(tomllib.loads(RunConfig().to_toml()))
    known = flat(RunConfig().model_dump())
    assert set(known) - set(written) == {name for name, value in known.items() if value is None}
    assert written["search.evaluations"] == SearchConfig().evaluations


NAME = st.from_regex(r"[a-z]{1,3}", fullmatch=True)
LEAVES = st.dictionaries(NAME, st.integers(), min_size=1, max_size=3)


@settings(max_examples=50, deadline=None)
@given(tree=st.dictionaries(NAME, LEAVES | st.integers() | st.dictionaries(NAME, LEAVES, max_size=2), max_size=3))
def test_nested_and_flat_are_inverse(tree):
    paths = flat(tree)
    assert flat(nested(paths)) == paths


# --- ranks -------------------------------------------------------------------------------------------------------


def test_later_layers_win_setting_by_setting():
    config = load_config(
        {"train": {"lr": 0.1, "epochs": 3}, "search": {"options": {"population": 5}}},
        {"train": {"lr": 0.2}},
        {"search": {"options": {"parents": 0.5}}},
    )
    assert (config.train.lr, config.train.epochs, config.train.batch_size) == (0.2, 3, RunConfig().train.batch_size)
    assert config.search.options == {"population": 5, "parents": 0.5}


def test_lists_are_replaced_not_joined():
    assert merge({"a": [1, 2], "b": {"c": 1}}, {"a": [3], "b": {"d": 2}}) == {"a": [3], "b": {"c": 1, "d": 2}}


def test_flags_beat_the_file_beats_the_recipe_beats_defaults(registry, tmp_path):
    recipe = read_toml(registry.load("recipe", "ofa-evolution"))["search"]
    assert recipe["evaluations"] != SearchConfig().evaluations
    file = tmp_path / "my.toml"
    file.write_text("seed = 3\n[search.options]\nparents = 0.5\n[train]\nlr = 0.5\nepochs = 2\n")

    def resolved(**params):
        return resolve.resolve_config(registry, params)

    assert resolved() == RunConfig()
    assert resolved(recipe="ofa-evolution").search.evaluations == recipe["evaluations"]
    both = resolved(recipe="ofa-evolution", config_file=file)
    assert both.search.options == {**recipe["options"], "parents": 0.5}
    assert (both.train.lr, both.seed) == (0.5, 3)
    flags = resolved(recipe="ofa-evolution", config_file=file, lr=0.25, evaluations=7, settings=("seed=4",))
    assert (flags.train.lr, flags.train.epochs, flags.search.evaluations, flags.seed) == (0.25, 2, 7, 4)


def test_the_narrower_quantizer_flag_wins(registry):
    params = {"quantizer": "lsq", "act_quantizer": "other"}
    config = resolve.resolve_config(registry, params)
    assert (config.quantization.weight_quantizer, config.quantization.act_quantizer) == ("lsq", "other")


def test_every_recipe_is_a_valid_configuration(registry):
    for name in registry.names("recipe"):
        recipe, large = read_settings(registry.load("recipe", name))
        load_config(recipe)
        load_config(recipe, large)


def test_a_recipe_has_other_settings_for_large_images(registry, tmp_path):
    """``--recipe oqat --data IMAGENET`` is the paper's experiment: schedule, batch, resolutions."""
    small = resolve.resolve_config(registry, {"recipe": "oqat"})
    assert small.search.stages == ("4-bit", "3-bit", "2-bit")
    assert small.train.batch_size == RunConfig().train.batch_size
    asked = resolve.resolve_config(registry, {"recipe": "oqat", "image_size": 224})
    for label in range(2):
        folder = tmp_path / "images" / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng([label, i]).integers(0, 256, (240, 256, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    seen, data = resolve.resolve_start(registry, {"recipe": "oqat", "data": str(tmp_path / "images")})
    assert data.image_size == 224
    for large in (asked, seen):
        assert (large.train.optimizer, large.train.momentum, large.train.batch_size) == ("sgd", 0.9, 2048)
        assert [(s.name, s.epochs) for s in large.train.stages] == [
            ("float", 180),
            ("4-bit", 120),
            ("3-bit", 25),
            ("2-bit", 25),
        ]
        assert [s.inherit for s in large.train.stages] == [False, False, True, True]
        assert large.evaluation.calibration_images == 2000
    for space in ("mbv3", "mbv2"):
        config = resolve.resolve_config(registry, {"recipe": "oqat", "image_size": 224, "space": space})
        knobs = {k.label: k.choices for k in components.build_space(registry, config, data).knobs}
        assert knobs["resolution"] == tuple(range(128, 225, 4))
        assert knobs["stage2.depth"] == (2, 3, 4)
        assert knobs["stage2.block1.kernel"] == (3, 5, 7)
        assert knobs["stage2.block1.expansion"] == (3, 4, 6)
    mine = tmp_path / "mine.toml"
    mine.write_text("[train]\nbatch_size = 32\nweight_decay = 0.5\n[large.train]\nweight_decay = 0.25\n")
    over = resolve.resolve_config(registry, {"recipe": "oqat", "image_size": 224, "config_file": mine}).train
    assert (over.batch_size, over.optimizer, over.weight_decay) == (32, "sgd", 0.25)
    assert resolve.resolve_config(registry, {"recipe": "oqat", "config_file": mine}).train.weight_decay == 0.5
    copied = tmp_path / "copied.toml"  # a recipe is a file that a user may copy and change
    copied.write_text(registry.load("recipe", "oqat").read_text())
    assert resolve.resolve_config(registry, {"config_file": copied, "image_size": 224}) == asked
    mine.write_text("large = 3\n")
    with pytest.raises(ConfigError, match="is a table"):
        resolve.resolve_config(registry, {"config_file": mine})


@pytest.mark.parametrize("size", [16, 224])
def test_what_oqat_is_compared_with_is_on_equal_ground(registry, size):
    names = ("oqat", "nas-then-quantize", "search-then-retrain")
    oqat, nas, again = (resolve.resolve_config(registry, {"recipe": name, "image_size": size}) for name in names)
    float_stage, four = oqat.train.stages[:2]
    for config in (nas, again):
        assert config.space == oqat.space
        assert config.evaluation == oqat.evaluation
        assert config.train.model_copy(update={"stages": ()}) == oqat.train.model_copy(update={"stages": ()})
        assert config.train.stages[0] == float_stage
        own = {"stages": (), "objectives": ()}
        assert config.search.model_copy(update=own) == oqat.search.model_copy(update=own)
        assert config.retrain.points == "chosen"
    assert nas.quantization == oqat.quantization
    assert again.quantization == oqat.quantization.model_copy(update={"w_bits": (4,), "a_bits": (4,)})
    assert (nas.retrain.start, nas.retrain.bits, again.retrain.start) == ("supernet", (4, 3, 2), "scratch")
    for stage in (*nas.retrain.stages, again.train.stages[1]):
        assert (stage.epochs, stage.lr, stage.quantize) == (four.epochs, four.lr, True)
    assert (nas.search.stages, nas.search.objectives) == (("float",), ("accuracy", "macs"))
    assert (again.search.stages, again.search.objectives) == (("quantized",), ("accuracy", "bitops"))
    for config in (nas, again):
        check_retrain(config, registry)
    two = resolve.resolve_config(registry, {"recipe": "search-then-retrain", "w_bits": [2], "a_bits": [2]})
    check_retrain(two, registry)


def test_flags_that_a_list_of_stages_makes_idle_are_refused(registry):
    for name, value in (("epochs", 3), ("float_epochs", 3), ("lr", 0.1), ("calibrator", "mse")):
        with pytest.raises(ConfigError, match=r"would change nothing.*4-bit .8 epochs"):
            resolve.resolve_config(registry, {"recipe": "oqat", name: value})


# --- flags -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", sorted(options.FLAGS))
def test_a_flag_says_nothing_that_toml_cannot(flag):
    paths, group, names, _ = options.FLAGS[flag]
    known = flat(RunConfig().model_dump())
    assert group in (options.MODEL, options.TRAINING, options.SEARCHING, options.PROCESSES)
    for path in paths:
        owner, _, option = path.rpartition(".options.")
        if ".weight_options." in path or ".act_options." in path:
            owner, _, option = path.rpartition("_options.")
            assert f"{owner}_options" in known
        elif owner:
            assert f"{owner}.options" in known
        else:
            assert path in known
            continue
        assert option.isidentifier()
    assert all(name.startswith("--") for name in names)


def test_prefixes_of_list_flags_are_tables_of_options():
    known = flat(RunConfig().model_dump())
    for prefix, _, _, _ in options.LISTS.values():
        assert prefix.removesuffix(".") in known


def test_flags_become_settings_and_absent_ones_none():
    assert resolve.flag_settings({}) == {}
    found = resolve.flag_settings(
        {
            "w_bits": [2, 3],
            "objective": ("accuracy",),
            "constraint": (),
            "se": False,
            "lr": None,
            "space_option": ("kernels=3,5",),
            "settings": ("train.warmup=0.2",),
        }
    )
    assert found == {
        "quantization.w_bits": [2, 3],
        "search.objectives": ["accuracy"],
        "space.options.se": False,
        "space.options.kernels": [3, 5],
        "train.warmup": 0.2,
    }


def test_lists_of_whole_numbers():
    convert = options.INT_LIST.convert
    assert convert("4,2,3", None, None) == [2, 3, 4]
    with pytest.raises(click.BadParameter, match="whole numbers such as 2,3,4"):
        convert("2,x", None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.lr=0.1", ("train.lr", 0.1)),
        ("a=3", ("a", 3)),
        ("a=true", ("a", True)),
        ("a=1,2,3", ("a", [1, 2, 3])),
        ("a=[1, 2]", ("a", [1, 2])),
        ("a=plain text", ("a", "plain text")),
        ('a="quoted"', ("a", "quoted")),
        ("a=b=c", ("a", "b=c")),
        (" a =1", ("a", 1)),
        ("a=x,y", ("a", "x,y")),
        ("a=", ("a", "")),
    ],
)
def test_settings_are_toml_or_plain_text(text, expected):
    assert parse_setting(text) == expected


def test_small_images_train_on_one_thread():
    assert default_threads(16) == default_threads(32) == 1
    assert default_threads(224) >= 1


# --- mistakes ----------------------------------------------------------------------------------------------------

STAGE = {"name": "a", "epochs": 1, "lr": 0.1}
MISTAKES = {
    "unknown section": ({"trian": {}}, ["'trian'", "Did you mean 'train'?"]),
    "unknown setting": ({"train": {"epoch": 3}}, ["'train.epoch'", "Did you mean 'epochs'?", "batch_size"]),
    "wrong type": ({"train": {"epochs": "many"}}, ["train.epochs", "'many'", "integer"]),
    "fraction of an epoch": ({"train": {"epochs": 1.5}}, ["train.epochs", "1.5"]),
    "text for a list": ({"search": {"objectives": "accuracy"}}, ["search.objectives", "'accuracy'"]),
    "number for a table": ({"train": 3}, ["train", "3", "dictionary"]),
    "too small": ({"train": {"epochs": -1}}, ["train.epochs", "-1", "greater than or equal to 0"]),
    "too large": ({"data": {"search_fraction": 0.9}}, ["data.search_fraction", "0.9", "less than 0.5"]),
    "seed": ({"seed": -1}, ["seed", "-1", "greater than or equal to 0"]),
    "no number": ({"train": {"lr": float("nan")}}, ["train.lr", "nan"]),
    "infinite": ({"train": {"lr": float("inf")}}, ["train.lr", "inf"]),
    "not among": ({"quantization": {"granularity": "net"}}, ["quantization.granularity", "'net'", "'network'"]),
    "element": ({"quantization": {"w_bits": [2, "x"]}}, ["quantization.w_bits.1", "'x'", "integer"]),
    "stage's name": ({"train": {"stages": [{**STAGE, "name": "a/b"}]}}, ["train.stages.0.name", "'a/b'"]),
    "stage's setting": ({"train": {"stages": [{**STAGE, "epoch": 1}]}}, ["train.stages.0.epoch", "does not exist"]),
    "nothing to train": ({"train": {"epochs": 0, "float_epochs": 0}}, ["train.epochs", "at least one epoch"]),
    "equal stages": ({"train": {"stages": [STAGE, STAGE]}}, ["train.stages", "a, a", "Rename"]),
}


def assert_helpful(message, parts):
    for part in parts:
        assert part in message
    assert "\n" not in message
    assert message.endswith(".")
    assert "Traceback" not in message
    assert "pydantic" not in message
    last = re.split(r"(?<=[.?:;]) ", message)[-1]
    assert last[0].isupper()  # what to do next


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_name_the_setting_the_value_and_what_to_do(name):
    values, parts = MISTAKES[name]
    with pytest.raises(ConfigError) as error:
        load_config(values)
    assert_helpful(str(error.value), parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"seed = = 1", ["my.toml", "no valid TOML", "line 1"]),
        (b"[train\n", ["my.toml", "no valid TOML"]),
        (b"\xff\xfe", ["my.toml", "no valid TOML"]),
        (None, ["my.toml", "No such file"]),
    ],
)
def test_unreadable_files_are_named(tmp_path, content, parts):
    path = tmp_path / "my.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_toml(path)
    assert_helpful(str(error.value), parts)


@pytest.mark.parametrize("text", ["train.lr", "=3", " =3", ""])
def test_settings_without_name_or_value_are_refused(text):
    with pytest.raises(ConfigError) as error:
        parse_setting(text)
    assert_helpful(str(error.value), [repr(text), "NAME=VALUE"])


def test_a_setting_below_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"'train\.lr\.x' does not name a setting: 'lr'"):
        nested({"train.lr": 1, "train.lr.x": 2})


def test_stages_follow_from_the_rest_unless_given():
    train = RunConfig().train
    assert [(s.name, s.quantize) for s in train.all_stages()] == [("float", False), ("quantized", True)]
    given_stages = load_config({"train": {"stages": [STAGE]}}).train.all_stages()
    assert given_stages == (StageConfig(**STAGE),)


# --- data --------------------------------------------------------------------------------------------------------


def test_data_is_a_name_first_and_then_a_path(registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "pets").mkdir()

    def data(value, **params):
        return resolve.resolve_config(registry, {"data": value, **params}).data

    assert (data("digits").name, data("digits").options) == ("digits", {})
    for value, path in (("./digits", "digits"), ("pets", "pets"), (str(tmp_path / "pets"), "pets")):
        assert (data(value).name, data(value).options) == ("files", {"path": str(tmp_path / path)})
    limited = data("pets", settings=("data.options.limit=5",))
    assert limited.options == {"path": str(tmp_path / "pets"), "limit": 5}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data("~/pets").options == {"path": str(tmp_path / "pets")}
    with pytest.raises(
        ConfigError, match=r"'pest' does not exist.*Allowed: digits, files, scenes\. There is no .*/pest, either\."
    ):
        data("pest")


def test_a_file_may_name_the_path_too(registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    file = tmp_path / "my.toml"
    file.write_text("[data]\nname = 'files'\n[data.options]\npath = 'pets'\nflip = false\n")
    found = resolve.resolve_config(registry, {"config_file": file}).data
    assert found.options == {"path": str(tmp_path / "pets"), "flip": False}
    over = resolve.resolve_config(registry, {"config_file": file, "data": "other"}).data
    assert over.options == {"path": str(tmp_path / "other"), "flip": False}


def test_options_of_range_calibrators_reach_those_that_stages_name(registry):
    stage = {"name": "only", "epochs": 1, "lr": 0.01, "calibrator": "percentile"}
    config = load_config({"train": {"stages": [stage], "calibrator_options": {"percentile": 99.0}}})
    assert components.range_calibrators(registry, config)["percentile"].percentile == 99.0
