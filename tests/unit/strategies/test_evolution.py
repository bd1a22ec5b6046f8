"""What evolution fills its generations with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qnas.errors import ConfigError
from qnas_strategies import evolution
from qnas_strategies.evolution import Evolution
from tests.problems import Grid, drive, problem


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"population": 6}, "mmmccc"),
        ({"population": 6, "mutation_share": 1.0}, "mmmmmm"),
        ({"population": 9, "random_share": 1 / 3}, "mmmcccddd"),
        ({"population": 4, "random_share": 1.0}, "dddd"),
    ],
)
def test_shares_of_mutants_crossings_and_new_ones(monkeypatch, options, want):
    made = []
    for name in ("mutate", "cross"):
        was = getattr(evolution, name)
        monkeypatch.setattr(evolution, name, lambda *args, name=name, was=was: made.append(name[0]) or was(*args))
    space = Grid(numbers=12, size=7)  # so large that nothing is bred twice
    plain = problem(space)
    watched = replace(plain, draw=lambda rng, n: made.append("d") or plain.draw(rng, n))
    strategy = Evolution(watched, **options)
    drive(strategy, space, options["population"])
    assert set(made) <= {"d"}  # the first generation
    made.clear()
    drive(strategy, space, options["population"])
    found = "".join(made)
    assert "".join(dict.fromkeys(found)) == "".join(dict.fromkeys(want))  # one kind after another
    assert found == "".join(sorted(found, key=want.index))
    for kind in "mc":  # what was known already is bred again
        assert found.count(kind) >= want.count(kind)
    assert found.count("d") == want.count("d")


@pytest.mark.parametrize("options", [{"random_share": 1.5}, {"mutation_share": -0.1}, {"population": 1}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ConfigError, match="Strategy evolution"):
        Evolution(problem(Grid(numbers=2, size=3)), **options)
