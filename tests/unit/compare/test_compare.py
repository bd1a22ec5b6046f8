"""Comparisons of fabricated runs: budgets, tests, seeds, refusals, pages."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import sys
from html.parser import HTMLParser
from itertools import combinations, pairwise

import numpy as np
import pytest

from qnas.cli import main
from qnas.compare import compare_runs
from qnas.compare.budgets import common_budgets, pick, round_up
from qnas.compare.entries import read_entries, unique_names
from qnas.compare.page import render_comparison
from qnas.compare.result import compare
from qnas.errors import ConfigError, StoreError
from qnas.statistics import holm, mean_interval, paired, unpaired

GOOD = [(1_000_000, 200, 196), (3_000_000, 320, 310), (9_000_000, 370, 364)]
BAD = [(1_200_000, 180, 170), (4_000_000, 240, 236), (8_000_000, 300, 290)]
NUM_IMAGES = 400
HOSTILE = "<img src=x onerror=alert(1)>&'\""


@pytest.fixture
def runs(tmp_path, make_run):
    return [make_run(tmp_path / "good", GOOD, strategy="evolution"), make_run(tmp_path / "bad", BAD)]


def test_budgets_are_rounded_up_so_that_what_fits_still_fits():
    assert [round_up(v) for v in (1_234_567, 1_000_000, 0.0123, 999, 0)] == [1_300_000, 1_000_000, 0.013, 1000, 0]


def test_every_run_has_a_point_within_every_common_budget(runs):
    entries = read_entries(runs)
    budgets = common_budgets(entries, "bitops")
    assert budgets == sorted(set(budgets))
    assert budgets[0] == 1_200_000
    assert budgets[-1] == 9_000_000
    offers = [[pick(entry, "bitops", budget)["key"] for entry in entries] for budget in budgets]
    assert all(one != two for one, two in pairwise(offers))


def test_the_pick_is_the_best_on_the_search_split_whatever_the_test_split_says(tmp_path, make_run):
    path = make_run(tmp_path / "a", [(100, 300, 390), (200, 310, 10), (900, 350, 350)])
    other = make_run(tmp_path / "b", [(100, 300, 300)])
    (entry, _) = read_entries([path, other])
    assert pick(entry, "bitops", 250)["key"] == "a1"
    assert pick(entry, "bitops", 99) is None


def test_pairs_on_the_same_images_are_tested_together(runs, answers):
    found = compare(read_entries(runs), "bitops", [1_200_000, 5_000_000, 9_000_000])
    expected = []
    for good, bad in zip(((196, 0), (310, 7), (364, 14)), ((170, 0), (236, 7), (290, 14)), strict=True):
        expected.append(paired(answers(*good), answers(*bad)))
    assert [pair["p_value"] for pair in found["pairs"]] == [test.p_value for test in expected]
    assert [pair["corrected"] for pair in found["pairs"]] == holm([test.p_value for test in expected])
    assert [pair["value"] for pair in found["pairs"]] == [
        (310 - 236) / 400 if i == 1 else e.difference.value for i, e in enumerate(expected)
    ]
    assert all(pair["paired"] and pair["significant"] == (pair["corrected"] < 0.05) for pair in found["pairs"])


def test_a_test_that_two_budgets_share_counts_once(runs):
    once = compare(read_entries(runs), "bitops", [5_000_000])["pairs"][0]
    one, two = compare(read_entries(runs), "bitops", [5_000_000, 5_100_000])["pairs"]
    assert one["corrected"] == two["corrected"] == once["corrected"] == once["p_value"]


def test_different_test_images_are_not_paired(tmp_path, runs, make_run):
    other = make_run(tmp_path / "other", BAD, seed=1, digest="others")
    found = compare(read_entries([runs[0], other]), "bitops", [9_000_000])
    (pair,) = found["pairs"]
    assert pair["why"] == "different test images: not paired"
    interval = unpaired(0.91, NUM_IMAGES, 0.725, NUM_IMAGES)
    assert (pair["value"], pair["low"], pair["high"]) == (interval.value, interval.low, interval.high)
    assert "p_value" not in pair


def test_runs_that_differ_in_the_seed_alone_are_averaged(tmp_path, make_run):
    seeds = [make_run(tmp_path / f"s{i}", [(100, 200 + i, 190 + 2 * i)], seed=i, digest=str(i)) for i in range(3)]
    again = make_run(tmp_path / "again", [(100, 1, 1)], seed=0, digest="0")
    longer = make_run(tmp_path / "longer", [(100, 220, 220)], seed=3, epochs=2)
    found = compare(read_entries([*seeds, again, longer]), "bitops")
    (group,) = found["groups"]
    assert group["runs"] == ["s0", "s1", "s2"]
    assert group["seeds"] == [0, 1, 2]
    mean = mean_interval([190 / 400, 192 / 400, 194 / 400])
    expected = {"value": mean.value, "low": mean.low, "high": mean.high, "num_seeds": 3}
    assert group["at_budget"] == [pytest.approx(expected)]
    assert "s0 + s1 + s2" in render_comparison(found)


def test_hypervolumes_share_the_loosest_box(tmp_path, make_run):
    boxes = [({"accuracy": 0.1, "bitops": 1e7}, {"accuracy": 1.0, "bitops": 0.0})]
    boxes.append(({"accuracy": 0.0, "bitops": 5e6}, {"accuracy": 0.9, "bitops": 1e5}))
    paths = []
    for i, (reference, ideal) in enumerate(boxes):
        volume = {"search": 0.5, "test": 0.5, "reference": reference, "ideal": ideal}
        paths.append(make_run(tmp_path / f"r{i}", [(5_000_000, 200, 100)], hypervolume=volume))
    found = compare(read_entries(paths), "bitops")
    assert found["box"]["reference"] == {"accuracy": 0.0, "bitops": 1e7}
    assert found["box"]["ideal"] == {"accuracy": 1.0, "bitops": 0.0}
    assert found["runs"][0]["hypervolume"] == {"search": pytest.approx(0.25), "test": pytest.approx(0.125)}


def test_a_search_of_a_run_can_be_named(runs):
    with pytest.raises(ConfigError, match="given twice"):
        read_entries([runs[0], runs[0] / "searches" / "01-evolution"])
    (first, _) = read_entries([runs[0] / "searches" / "01-evolution", runs[1]])
    assert first.name == "good/01-evolution"


def test_names_are_as_short_as_they_can_be():
    assert unique_names([["x", "a"], ["x", "b"]]) == ["a", "b"]
    assert unique_names([["x", "a"], ["y", "a"]]) == ["x/a", "y/a"]


# --- what cannot be compared -------------------------------------------------------------------------------------


def test_refusals(tmp_path, runs, make_run):
    size = make_run(tmp_path / "size", GOOD, objectives=[{"name": "accuracy", "direction": "max"}])
    metric = make_run(tmp_path / "metric", GOOD, metric="top5")
    unfinished = make_run(tmp_path / "unfinished", GOOD)
    (unfinished / "searches/01-random/front.json").unlink()
    for other, error, words in (
        (tmp_path / "nowhere", StoreError, "no run directory"),
        (unfinished, StoreError, "no finished search.*qnas search"),
        (size, ConfigError, "objectives of good is accuracy .max., bitops .min., of size accuracy .max."),
        (metric, ConfigError, "metric of good is accuracy, of metric top5"),
    ):
        with pytest.raises(error, match=words):
            compare_runs([runs[0], other], tmp_path / "out")
    with pytest.raises(ConfigError, match="at least two runs"):
        compare_runs(runs[:1], tmp_path / "out")
    with pytest.raises(ConfigError, match=r"cost 'bitop' does not exist. Did you mean 'bitops'.*size_bytes"):
        compare_runs(runs, tmp_path / "out", "bitop")
    assert not (tmp_path / "out").exists()


def test_only_an_earlier_comparison_is_overwritten(tmp_path, runs):
    out = tmp_path / "out"
    first = compare_runs(runs, out)
    assert sorted(os.listdir(out)) == ["compare.html", "compare.json", "compare.png"]
    before = {name: (out / name).read_bytes() for name in os.listdir(out)}
    assert compare_runs(runs, out) == first == json.loads(before["compare.json"])
    assert {name: (out / name).read_bytes() for name in os.listdir(out)} == before
    (out / "mine.txt").write_text("")
    with pytest.raises(StoreError, match=r"mine.txt.*Choose another --out"):
        compare_runs(runs, out)
    with pytest.raises(StoreError, match="nothing there is overwritten"):
        compare_runs(runs, runs[0])


def test_runs_are_only_read_whoever_holds_them(tmp_path, runs):
    def digest(path):
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    leftover = runs[0] / "front.json.partial"
    leftover.write_text("of the process that holds the run")
    before = [digest(run) for run in runs]
    lock = os.open(runs[0] / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        compare_runs(runs, tmp_path / "out")
    finally:
        os.close(lock)
    assert [digest(run) for run in runs] == before


def test_a_run_without_trials_has_fronts_but_no_tests(tmp_path, runs):
    (runs[0] / "trials.sqlite").unlink()
    found = compare_runs(runs, tmp_path / "out")
    assert not (runs[0] / "trials.sqlite").exists()
    assert {pair["why"] for pair in found["pairs"]} == {"answers were not stored: not paired"}
    (runs[1] / "trials.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match=r"trials.sqlite cannot be read"):
        compare_runs(runs, tmp_path / "out")


# --- pages -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    VOID = ("meta", "link", "input", "br", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attrs):
        self.elements.append((name, dict(attrs)))
        if name not in self.VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name


@pytest.mark.parametrize("name", ["plain", HOSTILE])
def test_the_page_is_well_formed_and_offline_whatever_the_names(runs, name):
    found = compare(read_entries(runs), "bitops")
    found = json.loads(json.dumps(found).replace('"good"', json.dumps(name)).replace('"evolution"', json.dumps(name)))
    text = render_comparison(found)
    page = Page(text)
    assert page.open == []
    names = [element for element, _ in page.elements]
    assert names.count("table") == names.count("caption") == 3
    assert "img" not in names
    assert not [a for _, a in page.elements if any(key.startswith("on") for key in a)]
    assert all(a.get("scope") in ("col", "row") for element, a in page.elements if element == "th")
    assert all(a.get("aria-label") for _, a in page.elements if a.get("role") == "figure")
    for _, attributes in page.elements:
        for key in ("src", "href", "action"):
            assert re.match(r"#|data:,|$", attributes.get(key) or "")
    embedded = text.split('id="data">')[1].split("</script>")[0]
    assert name in [run["name"] for run in json.loads(embedded)["runs"]]
    assert "Holm" in text
    assert "within noise" in text or "is better" in text


def test_the_command_prints_a_table_or_json(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["qnas", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capsys.readouterr()

    code, out, err = call("good", "bad", "--cost", "size_bytes")
    assert (code, err) == (0, "")
    assert "good" in out
    assert re.search(r"Significant after Holm's correction: \d of \d paired tests", out)
    assert "Comparison: compare/compare.html" in out
    assert (tmp_path / "compare/compare.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = call("good", "bad", "--cost", "size_bytes", "--json", "--budget", "50000")
    assert json.loads(out) == json.loads((tmp_path / "compare/compare.json").read_text())
    assert json.loads(out)["budgets"] == [50000.0]
    code, out, err = call("good")
    assert (code, out) == (2, "")
    assert "at least two runs" in err


# --- statistics --------------------------------------------------------------------------------------------------


def test_holm_controls_the_chance_of_one_false_claim():
    rng = np.random.default_rng(0)
    false = sum(min(holm(rng.random(6).tolist())) < 0.05 for _ in range(2000))
    assert false / 2000 == pytest.approx(0.05, abs=0.012)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_unpaired_intervals_hold_what_they_promise():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(2000):
        one, two = rng.binomial(100, 0.9) / 100, rng.binomial(80, 0.8) / 80
        interval = unpaired(one, 100, two, 80)
        assert interval.value == one - two
        held += interval.low <= 0.1 <= interval.high
    assert held / 2000 == pytest.approx(0.95, abs=0.02)
    for n, m in combinations((1, 5), 2):
        assert -1 <= unpaired(1.0, n, 0.0, m).low <= unpaired(1.0, n, 0.0, m).high <= 1
