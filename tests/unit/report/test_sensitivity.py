"""The additive fit finds what was put in, and says when it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from qnas.report.sensitivity import sensitivity

BITS = (2, 3, 4)
EFFECTS = {"stage1.w_bits": (-0.05, 0.0, 0.02), "stage1.a_bits": (-0.1, 0.0, 0.01), "w_bits": (0.0, 0.0, 0.0)}


def draw(n: int, noise: float, seed: int, depth: float = 0.03) -> list[dict]:
    rng = np.random.default_rng(seed)
    trials = []
    for i in range(n):
        sample = {label: int(rng.choice(BITS, p=(0.5, 0.25, 0.25))) for label in EFFECTS}
        sample |= {"depth": int(rng.integers(1, 4)), "act": str(rng.choice(["relu", "swish"]))}
        score = 0.7 + sum(EFFECTS[label][BITS.index(sample[label])] for label in EFFECTS)
        score += depth * sample["depth"] + noise * float(rng.standard_normal())
        metrics = {"accuracy": score, "macs": 1000 * sample["depth"] ** 2}
        trials.append({"key": str(i), "sample": sample, "metrics": metrics})
    return trials


def truth(trials: list[dict], label: str) -> dict[int, float]:
    """Each choice's effect minus the mean effect over the subnets."""
    mean = np.mean([EFFECTS[label][BITS.index(t["sample"][label])] for t in trials])
    return {bits: EFFECTS[label][i] - mean for i, bits in enumerate(BITS)}


def test_without_noise_the_effects_are_exact() -> None:
    trials = draw(60, 0.0, 0)
    found = sensitivity(trials, "accuracy")
    assert found.covariates == "a coefficient for every choice of every other knob"
    assert (found.num_subnets, found.num_coefficients) == (60, 1 + 3 * 2 + 2 + 1)
    assert found.residual == pytest.approx(0.0, abs=1e-12)
    assert len(found.effects) == 9
    for effect in found.effects:
        label = effect.role if effect.group == "network" else f"{effect.group}.{effect.role}"
        assert effect.value == pytest.approx(truth(trials, label)[effect.bits], abs=1e-12)
        assert effect.num_subnets == sum(t["sample"][label] == effect.bits for t in trials)


def test_errors_are_as_large_as_the_estimates_scatter() -> None:
    noise, scores = 0.02, []
    for seed in range(100):
        trials = draw(80, noise, seed)
        for effect in sensitivity(trials, "accuracy").effects:
            if (effect.group, effect.role) == ("stage1", "a_bits"):
                scores.append((effect.value - truth(trials, "stage1.a_bits")[effect.bits]) / effect.error)
    assert np.mean(scores) == pytest.approx(0.0, abs=0.2)
    assert np.std(scores) == pytest.approx(1.0, abs=0.12)


def test_errors_are_those_of_ordinary_least_squares() -> None:
    """Against a fit with another coding of the same model, and the textbook's formula."""
    trials = draw(50, 0.02, 3)
    x, y = [], [t["metrics"]["accuracy"] for t in trials]
    for t in trials:
        s = t["sample"]
        row = [float(s["stage1.w_bits"] == b) for b in BITS]  # cell means: no constant
        row += [float(s[label] == b) for label in ("stage1.a_bits", "w_bits") for b in BITS[:-1]]
        x.append([*row, float(s["depth"] == 2), float(s["depth"] == 3), float(s["act"] == "relu")])
    x, y = np.array(x), np.array(y)
    beta, residuals, *_ = np.linalg.lstsq(x, y, rcond=None)
    covariance = residuals[0] / (len(y) - x.shape[1]) * np.linalg.inv(x.T @ x)
    share = x[:, :3].mean(0)
    for i, bits in enumerate(BITS):
        contrast = np.zeros(x.shape[1])
        contrast[:3] = -share
        contrast[i] += 1
        (effect,) = (
            e
            for e in sensitivity(trials, "accuracy").effects
            if (e.group, e.role, e.bits) == ("stage1", "w_bits", bits)
        )
        assert effect.value == pytest.approx(contrast @ beta)
        assert effect.error == pytest.approx(np.sqrt(contrast @ covariance @ contrast))


def test_fewer_subnets_get_simpler_covariates_and_then_none() -> None:
    trials = draw(200, 0.01, 1)
    rng = np.random.default_rng(5)
    for trial in trials:
        trial["sample"] |= {f"block{j}.kernel": int(rng.choice([3, 5, 7, 9, 11])) for j in range(8)}
    words = [sensitivity(trials[:n], "accuracy").covariates for n in (200, 30, 14)]
    assert words[0].startswith("a coefficient")
    assert words[1] == "every other knob as one number"
    assert words[2].endswith("logarithm of the MACs alone")
    few = sensitivity(trials[:10], "accuracy")
    assert not few.effects
    assert "10 judged subnets cannot tell" in few.reason


def test_confounded_bits_are_not_told_apart() -> None:
    trials = draw(60, 0.01, 2)
    for trial in trials:
        trial["sample"]["stage1.a_bits"] = trial["sample"]["stage1.w_bits"]
    assert not sensitivity(trials, "accuracy").effects


def test_without_a_choice_of_bits_there_is_nothing_to_tell() -> None:
    trials = [{"key": str(i), "sample": {"depth": i, "w_bits": 4}, "metrics": {"accuracy": 0.5}} for i in range(30)]
    assert "no bit-width differs" in sensitivity(trials, "accuracy").reason
    assert sensitivity([], "accuracy").num_subnets == 0


def test_equal_subnets_count_once() -> None:
    trials = draw(40, 0.01, 4)
    assert sensitivity(trials + trials, "accuracy") == sensitivity(trials, "accuracy")
