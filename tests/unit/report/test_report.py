"""The page and the picture of a run: complete, safe, offline, and the same for the same run."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qnas.report import ReportData, render_html, write_front_png, write_report
from qnas.report.charts import axis_names, chart_data, constraints, extend_front, progress, training
from qnas.report.collect import thinned
from qnas.report.data import json_safe, layer_bitops, toml_safe
from qnas.report.drawing import draw_subnet, shade
from qnas.report.formats import MINUS, TIMES, count, metric, percent_error, seconds, size
from qnas.report.inside import quantities
from qnas.report.insights import interval_said, minus
from qnas.report.markup import Markup, escape, tag

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&</style>${title}"
GOALS = [("accuracy", "max"), ("bitops", "min"), ("size_bytes", "min")]


def make_trial(n: int, accuracy: float, bitops: int, violation: float = 0.0) -> dict:
    return {
        "number": n,
        "search": "01-evolution",
        "key": f"{n:016x}",
        "sample": {"stem.w_bits": 2 + 2 * (n % 3), "depth": n},
        "metrics": {"accuracy": accuracy, "macs": bitops // 64, "bitops": bitops, "size_bytes": 1000 * (n + 1)},
        "violation": violation,
    }


def make_layer(name: str, kind: str = "conv", **more: int) -> dict:
    layer = {"name": name, "kind": kind, "in_channels": 16, "out_channels": 16, "kernel_size": 3, "stride": 1}
    layer |= {"groups": 1, "out_size": 8, "w_bits": 4, "a_bits": 8, "macs": 9216, "num_weights": 144}
    return layer | more


def make_run(num_objectives: int = 2, **changes: object) -> ReportData:
    trials = [make_trial(n, 0.8 + 0.02 * n, 1_000_000 * 2**n) for n in range(6)]
    trials.append(make_trial(6, 0.99, 500_000_000, violation=1.5))
    layers = [make_layer("stem", w_bits=32, a_bits=32), make_layer("block.add", "quantize", macs=0, num_weights=0)]
    points = [
        {
            "key": trial["key"],
            "sample": trial["sample"],
            "metrics": trial["metrics"],
            "standard_error": 0.01,
            "test": {**trial["metrics"], "accuracy": trial["metrics"]["accuracy"] - 0.005, "standard_error": 0.011},
            "layers": [*layers, make_layer("block.depthwise", groups=16)],
        }
        for trial in trials[:6]
    ]
    front = {
        "search": "01-evolution",
        "strategy": "evolution",
        "seed": 0,
        "objectives": [{"name": name, "direction": way} for name, way in GOALS[:num_objectives]],
        "constraints": ["bitops<=2e8"],
        "split": "search",
        "evaluations": 7,
        "num_images": {"search": 359, "test": 360},
        "chosen": trials[3]["key"],
        "points": points,
    }
    export = {
        "key": trials[3]["key"],
        "onnx": "exports/3/model.onnx",
        "packed": "exports/3/weights.bin",
        "onnx_bytes": 300_000,
        "packed_bytes": 150_000,
        "float_islands": [{"name": "stem", "reason": "h-swish"}],
        "operators": {"Conv": 3},
        "verify": {
            "passed": True,
            "subnet_accuracy": 0.86,
            "device_accuracy": 0.86,
            "agreement": 360,
            "largest_steps": 1,
            "failures": [],
        },
    }
    history = [
        {"stage": stage, "epoch": e, "losses": [1.0 - e / 9, 1.1, 1.3, 1.5], "lr": 0.1, "image_passes": 100}
        for stage in ("float", "quantized")
        for e in range(3)
    ]
    parts = {
        "config": {"name": "digits", "search": {"strategy": "evolution", "limit": None}},
        "environment": {"python": "3.11", "packages": {"torch": "2.6"}},
        "command": ["qnas", "run", "my run.toml"],
        "history": history,
        "trials": trials,
        "front": front,
        "exports": [export],
        "timings": {"train": 100.0, "search": 20.0},
        "name": "digits",
        "fronts": [front],
        "ties": {trial["key"]: {"chosen": 0.2 if i else None, "next": 0.001} for i, trial in enumerate(trials[:6])},
        "gap": {"value": 0.005, "low": -0.01, "high": 0.02},
        "alone": [make_alone(trials[3]["key"])],
        "ranks": [make_rank(trials)],
        "insights": make_insights(),
        "inside": [make_look(stage, number) for stage, number in (("float", 5), ("quantized", 10), ("quantized", 15))],
    }
    return ReportData(**(parts | changes))


def make_insights(*names: str) -> dict:
    """Two stages, a kind in two places; the second stage lacks kernel 7."""

    def preference(choice: int, place: str, value: float, resolved: bool) -> dict:
        effect = {"value": value, "low": value - 0.01, "high": value + 0.011}
        base = {"kind": "kernel", "place": place, "choice": choice, "num_subnets": 50, "num_with": 40, "mirror": False}
        shares = {"gain": effect, "good_share": 0.41, "all_share": 0.33}
        return {**base, **shares, "effect": effect, "resolved": resolved}

    def stage(name: str, choices: tuple[int, ...]) -> dict:
        found = [preference(c, p, 0.02 * c - 0.1, c == 3) for p in ("network", "stage1", "stage2") for c in choices]
        found[-1] = {**found[-1], "effect": None, "good_share": None}
        counts = {"num_subnets": 50, "r2": 0.61, "num_tested": len(found) - 1, "num_resolved": 3}
        return {"name": name, "preferences": found, "expected_by_chance": 0.4, **counts}

    difference = {"value": 0.031, "low": 0.01, "high": 0.05}
    entries = [{"kind": "kernel", "choice": 3, "difference": difference, "resolved": True, "mirror": False}]
    counts = {"num_subnets": 48, "num_tested": 1, "num_resolved": 1, "expected_by_chance": 0.05}
    return {
        "metric": "accuracy",
        "cost": "bitops",
        "num_images": 359,
        "good": 0.25,
        "stages": [stage("float", (3, 5, 7)), stage("2-bit", (3, 5))],
        "difference": {"low": "2-bit", "high": "float", "entries": entries, **counts},
    }


def make_alone(key: str) -> dict:
    scores = {split: {"accuracy": 0.9, "bitops": 1} for split in ("search", "test")}
    errors = {"search": 0.02, "test": 0.03}
    stages = [{"name": "float", "epochs": 2, "lr": 0.1}, {"name": "quantized", "epochs": 3, "lr": 0.1}]
    head = {"key": key, "start": "scratch", "seed": 4, "stages": stages, "image_passes": 1234.5}
    return {**head, "metrics": scores, "standard_error": errors}


def make_rank(trials: list[dict]) -> dict:
    configs = [
        {"key": t["key"], "supernet": 0.5 + i / 100, "alone": 0.7 + i / 100, "alone_standard_error": 0.02}
        for i, t in enumerate(trials)
    ]
    settings = {"start": "supernet", "seed": 0, "budget": 0.5, "lr": None}
    tau = {"value": 0.75, "low": 0.5, "high": 0.9}
    images = {"supernet": 359, "alone": 360}
    return {
        "metric": "accuracy",
        "num_configs": 7,
        "settings": settings,
        "tau": tau,
        "num_images": images,
        "configs": configs,
    }


def make_look(stage: str, number: int) -> dict:
    quantized = {"stem.weight": 0.25, "stem.activation": 0.125} if stage == "quantized" else {}
    head = {"stage": stage, "number": number, "key": "k", "steps": quantized, "clip_ratios": quantized}
    return {**head, "bn_std": {"stem": 1.5}, "gradient_norms": {"stem": 0.3, "head": 0.123456}}


class Page(HTMLParser):
    """Collects elements, attributes, the text of scripts and all other text, and checks that elements nest."""

    VOID = ("meta", "link", "input", "br", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._raw = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attrs)))
        self._raw = name if name in ("script", "style") else ""
        if name not in self.VOID:
            self._open.append(name)
        if name == "script":
            self.scripts.append("")

    def handle_endtag(self, name: str) -> None:
        self._raw = ""
        assert self._open.pop() == name

    def handle_data(self, data: str) -> None:
        if self._raw == "script":
            self.scripts[-1] += data
        elif not self._raw:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.elements if attributes.get("id")]


def hostile(value: object) -> object:
    """Return the same structure with every free text made hostile."""
    if isinstance(value, dict):
        fixed = {"direction", "stage", "chosen", "onnx", "passed", "split"}
        return {name: item if name in fixed else hostile(item) for name, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return value + HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("num_objectives", [1, 2, 3])
def test_the_page_tells_the_run(num_objectives: int) -> None:
    page = Page(render_html(make_run(num_objectives)))
    for words in (
        "digits",
        "85.5% ± 1.1",
        "Verified? yes",
        "stem",
        "float",
        "depthwise conv",
        "exports/3/model.onnx",
        "qnas run 'my run.toml'",
        'strategy = "evolution"',
        "packages.torch",
        "search split (359 images)",
        "looked at only for the points of the front, after selection",
        "1 min 40 s",
        f"Mean gap over the front: +0.5 points, 95% interval {MINUS}1.0 to +2.0: zero is within it",
        "tied (p = 0.2)",
        "differs (p = 0.001)",
        "Left out: 7 judged subnets cannot tell",
        "7 random subnets, trained from the supernet's weights, 0.5 times the supernet's epochs, seed 0",
        "Kendall's tau 0.75, 95% interval 0.50 to 0.90",
        "scratch 4 2 + 3 1.23 k 90.0 ± 2.0% 90.0 ± 3.0%",
        "3 looks inside",
        f"good subnets avoid kernel 3 ({MINUS}4.0 points), kernel 3 in stage1 ({MINUS}4.0 points)",
        "by chance alone about 0.4 would be",
        f"{MINUS}4.0 ({MINUS}5.0 to {MINUS}2.9) 33% \N{RIGHTWARDS ARROW} 41%",
        "stage1: 7 +4.0 (+3.0 to +5.1)",
        "2-bit against float, the same architectures: effects differ for kernel 3 (+3.1 points)",
        "48 architectures, each judged at both stages",
        "not recorded",
    ):
        assert words in page.text
    assert {
        "gap-chart",
        "volume-chart",
        "inside-chart",
        "rank-0-chart",
        "insight-0-chart",
        "insight-place-0-chart",
    } <= set(page.ids())
    assert {"front-chart", "search-chart", "training-chart", "trials", "point", "csv"} <= set(page.ids())
    assert len(page.ids()) == len(set(page.ids()))
    assert len([1 for name, attributes in page.elements if attributes.get("class") == "subnet"]) == 6
    shown = [a for _, a in page.elements if a.get("class") == "subnet" and "hidden" not in a]
    assert len(shown) == 1


def test_every_table_has_a_caption_and_scoped_headers() -> None:
    page = Page(render_html(make_run()))
    names = [name for name, _ in page.elements]
    assert names.count("table") == names.count("caption") > 0
    assert all(attributes.get("scope") in ("col", "row") for name, attributes in page.elements if name == "th")
    targets = {a["href"][1:] for name, a in page.elements if name == "a" and (a.get("href") or "").startswith("#")}
    assert targets <= set(page.ids())


def test_hostile_text_stays_text() -> None:
    run = make_run()
    front = hostile(run.front)
    front["points"][3]["key"] = front["chosen"] = HOSTILE
    exports = hostile(run.exports)
    exports[0]["verify"] = {"passed": False, "failures": [HOSTILE]}
    data = make_run(
        config={HOSTILE: {HOSTILE: HOSTILE}},
        environment={HOSTILE: HOSTILE},
        command=["qnas", HOSTILE],
        history=[{"stage": HOSTILE, "epoch": 0, "losses": [1.0, 2.0]}],
        trials=hostile(run.trials),
        front=front,
        exports=exports,
        timings={HOSTILE: 1.0},
        name=HOSTILE,
        fronts=[front | {"search": HOSTILE}],
        ties={HOSTILE: {"chosen": 0.5, "next": 0.5}},
        alone=hostile(run.alone),
        ranks=hostile(run.ranks),
        insights=hostile(run.insights),
        inside=[{name: {HOSTILE: 1.0, f"{HOSTILE}.weight": 1.0} for name in ("steps", "bn_std")} | {"stage": HOSTILE}],
    )
    text = render_html(data)
    page = Page(text)
    assert len(page.scripts) == 6
    assert not [attributes for name, attributes in page.elements if name == "img"]
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert html.escape(HOSTILE) in text
    embedded = json.loads(page.scripts[0])
    assert HOSTILE in [point["key"] for point in embedded["points"]]
    assert "</" not in page.scripts[0]


def test_the_page_loads_nothing_and_runs_only_its_own_scripts() -> None:
    text = render_html(make_run())
    page = Page(text)
    for _, attributes in page.elements:
        for name in ("src", "href", "action", "poster", "data", "srcset"):
            assert re.match(r"#|data:,|$", attributes.get(name) or "")
    style = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for name, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy
    data, plotly, *own = page.scripts
    json.loads(data)
    scripts = [*own, gzip.decompress(base64.b64decode(plotly)).decode()]
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    for script in own:
        assert "http://" not in script
        assert "https://" not in script
        assert "innerHTML" not in script
    assert "displayModeBar: false" in own[1], "the default buttons may hold one that sends the chart away"
    assert "Plotly" in scripts[-1]


def test_an_empty_run_says_so_and_stays_small() -> None:
    text = render_html(ReportData(config={}))
    page = Page(text)
    for words in ("Nothing has been evaluated yet", "No epoch has been finished", "Nothing has been exported yet"):
        assert words in page.text
    assert "Not asked yet. `qnas insights RUN` judges" in page.text
    assert "The test split has not been looked at" in page.text
    assert len(text) < 60_000


PARTS = ("history", "trials", "exports", "front", "timings", "environment", "command")
LATER = ("fronts", "ties", "gap", "alone", "ranks", "inside", "insights")


@pytest.mark.parametrize("part", [*PARTS, *LATER])
def test_any_part_may_be_missing(part: str, tmp_path: Path) -> None:
    empty = {"front": {}, "timings": {}, "environment": {}, "command": "", "ties": {}, "gap": {}, "insights": {}}.get(
        part, []
    )
    write_report(make_run(**{part: empty}), tmp_path)


def test_a_run_that_stopped_on_the_way() -> None:
    run = make_run()
    history = [{"stage": "float"}, {"stage": "float", "losses": [float("nan")]}, {"stage": "float", "losses": [2.0]}]
    point = {"key": "a", "sample": {}, "metrics": {"accuracy": None, "bitops": float("inf")}}
    exports = [{"key": "a", "onnx": "a.onnx", "onnx_bytes": 5, "verify": None}]
    front = {**run.front, "chosen": "a", "points": [point], "num_images": {}}
    page = Page(render_html(make_run(history=history, front=front, exports=exports, trials=[])))
    assert "not checked" in page.text
    assert "layers of this subnet were not recorded" in page.text
    assert "NaN" not in page.scripts[0]


def test_failed_verification_is_not_hidden() -> None:
    run = make_run()
    verify = {"passed": False, "failures": ["layer stem differs by 9 steps"]}
    page = Page(render_html(make_run(exports=[run.exports[0] | {"verify": verify}])))
    assert "Verified? no 1 failure" in page.text
    assert "layer stem differs by 9 steps" in page.text


@pytest.mark.parametrize("num_objectives", [1, 2, 3])
def test_equal_runs_give_equal_bytes(num_objectives: int, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(make_run(num_objectives), tmp_path / name)
    for file in ("report.html", "front.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    picture = (tmp_path / "a" / "front.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert b"Software" not in picture
    assert b"tEXt" not in picture.replace(b"IDAT", b"")[:200]


def test_names_with_dollars_are_not_mathematics(tmp_path: Path) -> None:
    trials = [make_trial(n, 0.9, 10**6 + n) for n in range(3)]
    for trial in trials:
        trial["metrics"] = {"a$b_$": 0.5, "$\\frac{": 3.0 + trial["number"]}
    write_front_png(make_run(trials=trials, front={}), tmp_path / "front.png")


def test_files_are_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(make_run(), tmp_path / "made" / "here")
    assert path == tmp_path / "made" / "here" / "report.html"
    assert sorted(os.listdir(path.parent)) == ["front.png", "report.html"]
    before = path.read_bytes()

    def fail(source: object, target: object) -> None:
        assert os.path.dirname(source) == os.path.dirname(target)
        raise OSError("disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_report(make_run(name="other"), path.parent)
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == ["front.png", "report.html"]


def test_chart_data() -> None:
    content = chart_data(make_run(3))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["axes"] == ["accuracy", "bitops", "size_bytes"]
    assert content["labels"] == ["stem.w_bits", "depth"]
    assert content["trials"][4]["sample"] == [4, 4]
    assert [point["chosen"] for point in content["points"]].count(True) == 1
    assert content["points"][0]["metrics"][0] == max(point["metrics"][0] for point in content["points"])
    assert axis_names(chart_data(make_run(1))) == ("accuracy", "number", None)


def test_progress_counts_feasible_trials_only() -> None:
    (curve,) = progress(make_run())
    assert curve["best"][-1] == pytest.approx(0.9)
    assert curve["front"] == [1, 2, 3, 4, 5, 6, 6]
    assert curve["feasible"] == [True] * 6 + [False]


def test_front_of_vectors() -> None:
    front: list[list[float]] = []
    sizes = []
    for vector in ([1.0, 1.0], [1.0, 1.0], [0.5, 2.0], [2.0, 2.0], [0.0, 9.0]):
        front = extend_front(front, vector)
        sizes.append(len(front))
    assert sizes == [1, 1, 2, 1, 2]


def test_training_curves() -> None:
    curves = training(make_run().history)
    assert curves["epoch"] == [1, 2, 3, 4, 5, 6]
    assert curves["largest"][0] == 1.0
    assert curves["random"][0] == pytest.approx(1.2)
    assert curves["smallest"][0] == 1.5
    assert curves["stages"] == [{"name": "float", "start": 1}, {"name": "quantized", "start": 4}]


def test_hypervolume_grows_with_the_front_in_the_box_of_what_was_found() -> None:
    (curve,) = progress(make_run())
    assert curve["volume"] == sorted(curve["volume"])
    # accuracy 0.8 to 0.9 in steps of 0.02, bitops 1 to 32 M, each twice the one before
    steps = [0.2 * i * (2 ** (i + 1) - 2**i) / 31 for i in range(1, 5)] + [0]
    assert curve["volume"][-1] == pytest.approx(sum(steps))
    box = {"reference": {"accuracy": 0.0, "bitops": 1e8}, "ideal": {"accuracy": 1.0, "bitops": 0.0}}
    front = make_run().front | {"hypervolume": {"search": 0.5, "test": 0.25, **box}}
    data = make_run(front=front, fronts=[front])
    assert progress(data)[0]["volume"][0] == pytest.approx(0.8 * 0.99)
    assert "0.500 0.250" in Page(render_html(data)).text


def test_one_chart_holds_the_last_front_of_every_stage() -> None:
    point = make_run().front["points"][0]
    fronts = [
        make_run().front | {"search": f"{i:02d}-evolution", "stage": stage, "points": [point], "chosen": point["key"]}
        for i, stage in enumerate(["4-bit", "3-bit", "4-bit", "2-bit"], 1)
    ]
    config = make_run().config | {"train": {"stages": [{"name": f"{bits}-bit"} for bits in (4, 3, 2)]}}
    data = make_run(config=config, front=fronts[-1], fronts=fronts)
    content = chart_data(data)
    assert content["stage"] == "2-bit"
    assert [(f["search"], f["stage"], f["family"]) for f in content["others"]] == [
        ("01-evolution", "4-bit", False),
        ("02-evolution", "3-bit", True),
        ("03-evolution", "4-bit", True),
    ]
    text = Page(render_html(data)).text
    rows = [text.index(f"{bits}-bit {n}-evolution {point['key']}") for bits, n in ((4, "03"), (3, "02"), (2, "04"))]
    assert rows == sorted(rows)


def test_the_gap_of_each_point_is_drawn() -> None:
    points = chart_data(make_run())["points"]
    half = 1.959964 * (0.01**2 + 0.011**2) ** 0.5
    assert all(point["gap"] == pytest.approx([0.005, 0.005 - half, 0.005 + half]) for point in points)
    assert [point["tied"] for point in points] == [True] * 5 + [False]


def test_looks_inside_are_sorted_by_quantity_and_layer() -> None:
    found = quantities(make_run().inside)
    assert list(found) == [
        "clip_ratios.weight",
        "clip_ratios.activation",
        "steps.weight",
        "steps.activation",
        "bn_std",
        "gradient_norms",
    ]
    assert found["steps.weight"] == {"layers": ["stem"], "values": [[None, 0.25, 0.25]]}
    assert chart_data(make_run())["inside"]["quantities"]["gradient_norms"]["values"][1] == [0.1235] * 3
    assert quantities([]) == {}
    assert thinned(list(range(100)), 4) == [0, 33, 66, 99]
    assert thinned([1, 2], 4) == [1, 2]


def test_the_drawing_has_a_bar_a_layer_and_a_frame_a_block() -> None:
    layers = [
        make_layer("stem", out_channels=64, w_bits=8),
        make_layer("stem.out", "quantize"),
        make_layer("stage1.block1.depthwise", groups=16, stride=2, w_bits=2),
        make_layer("stage1.block1.project.out", "quantize"),
        make_layer("a.name.that.is.long.block2.conv", w_bits=32, a_bits=32),
    ]
    page = Page(draw_subnet({"key": "k", "layers": layers}))
    kinds = [a["class"] for name, a in page.elements if name == "rect"]
    assert kinds == ["frame", "layer", "grid", "frame", "layer", "grid", "frame", "floating"]
    widths = [float(a["width"]) for name, a in page.elements if name == "rect" and a["class"] == "layer"]
    assert widths[0] == pytest.approx(2 * widths[1])
    assert f"3{TIMES}3 dw /2, 16→16, 8{TIMES}8" in page.text
    assert "W float, A float" in page.text
    assert "…is.long.block2" in page.text
    assert [shade(b) for b in (2, 4, 8, 16, "x")] == ["0.00", "0.50", "1.00", "1.00", "1.00"]
    assert draw_subnet({"key": "k"}) == ""


def test_constraints_that_are_bounds() -> None:
    texts = ["bitops<=2e8", "size_bytes >= 10", "what ever"]
    bounds = [(c["metric"], c["bound"]) for c in constraints(make_run(front={"constraints": texts}))]
    assert bounds == [("bitops", 2e8), ("size_bytes", 10.0)]


def test_numbers_as_people_read_them() -> None:
    assert [count(v) for v in (0, 144, 1041984, 65946624, 999_900)] == ["0", "144", "1.04 M", "65.9 M", "1.00 M"]
    assert [size(v) for v in (12, 271424)] == ["12 B", "265 KiB"]
    assert [seconds(v) for v in (12.34, 100, 3725)] == ["12.3 s", "1 min 40 s", "1 h 02 min"]
    assert metric("accuracy", 0.9722, "accuracy") == "97.2%"
    assert metric("latency_ms", 1.5, "accuracy") == "1.5 ms"
    assert percent_error(0.972, 0.009) == "97.2 ± 0.9%"


def test_values_for_files() -> None:
    assert json_safe({1: (float("nan"), "a"), "b": object}) == {"1": [None, "a"], "b": "<class 'object'>"}
    assert toml_safe({"a": None, "b": [1, None], "c": {"d": None}}) == {"b": [1], "c": {}}
    assert layer_bitops({"macs": 10, "w_bits": 4, "a_bits": 8}) == 320


def test_markup_escapes_what_was_not_built_as_markup() -> None:
    assert tag("p", "<b>", tag("i", "&"), None, title='"') == '<p title="&quot;">&lt;b&gt;<i>&amp;</i></p>'
    assert isinstance(escape("x"), Markup)
    assert escape(Markup("<b>")) == "<b>"


def test_insights_as_numbers_for_their_charts() -> None:
    content = chart_data(make_run())["insights"]
    assert content["stages"] == ["float", "2-bit"]
    (kind,) = content["kinds"]
    assert kind["choices"] == ["3", "5", "7"]
    assert [place["name"] for place in kind["places"]] == ["stage1", "stage2"]
    low = {"value": -4.0, "low": -5.0, "high": -2.9, "resolved": True, "num_with": 40}
    assert kind["whole"][0][0] == kind["places"][1]["effects"][1][0] == low
    assert kind["whole"][1][2] is None, "the second stage has no such choice"
    assert kind["places"][1]["effects"][0][2] is None, "it could not be told"
    assert chart_data(ReportData(config={}))["insights"]["kinds"] == []


def test_only_negative_numbers_get_a_minus() -> None:
    assert minus("2-bit: -1.5 to (-0.3), 4-bit") == f"2-bit: {MINUS}1.5 to ({MINUS}0.3), 4-bit"
    assert interval_said({"value": -0.0001, "low": -0.02, "high": 0.01}) == f"+0.0 ({MINUS}2.0 to +1.0)"
