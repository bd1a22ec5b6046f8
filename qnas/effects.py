"""Which choices go with a good score at equal cost: least squares and a bootstrap over subnets. No torch.

Larger subnets score better, so "good" means good for its cost: the score is fitted by ``1, log cost, (log cost)^2`` and
what the fit leaves, the residual, is compared. Two statistics for each choice of each kind of knob:

- ``effect``: the slope of the score on the *share* of a subnet's active knobs that have the choice, in the fit with
  the cost. That is the score which a subnet gains, at equal cost, as it goes from none of its knobs with this choice
  to all of them; for one knob and a choice that says nothing of the cost, the difference of the mean residuals. The
  share enters the fit, instead of being compared with residuals afterwards, because it goes with the cost: a fit
  without it would give the cost a part of what the choice does (Frisch and Waugh, Econometrica 1933).
- ``gain``: the mean share among the best quarter of the subnets by residual, minus that among all.

At equal cost whoever spends more here spends less elsewhere: an effect says how to spend, not what one knob does alone.
Intervals are of the bootstrap over subnets, with the fit in each resample, and hold for the images that were judged on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qnas.rng import generator
from qnas.space import Indices, SearchSpace, Value
from qnas.statistics import CONFIDENCE, Interval

NETWORK = "network"
RESAMPLES = 2000
GOOD = 0.25  # share of the subnets that count as good
MIN_SUBNETS = 10  # judged, below which nothing is said
MIN_EACH = 5  # subnets with some of a choice, and subnets without some of it, for an interval
_UNDEFINED = 0.05  # share of resamples without an answer, beyond which there is no interval
_COLLINEAR = 1e-9  # variance of a share that the cost leaves unexplained, below which there is no effect
_DIGITS = 10  # of results: what differs behind them is rounding
Array = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Question:
    """One choice of one kind of knob, in one part of the network or in all of it.

    Attributes:
        kind: the last part of the knobs' labels: ``kernel``.
        place: the first part: ``stage2``; or :data:`NETWORK` for all knobs of the kind.
        choice: what they may have.
        knobs: positions in the space of those that may.
    """

    kind: str
    place: str
    choice: Value
    knobs: tuple[int, ...]


@dataclass(frozen=True)
class Preference:
    """What the subnets answer to a question.

    Attributes:
        num_subnets: that have a knob of the kind, active.
        num_with: that have the choice in one or more of them.
        effect: change of the score with the share; ``None`` where it cannot be told.
        gain: ``good_share - all_share``; likewise.
        good_share, all_share: mean share among the good subnets and among all; ``None`` where no subnet has the knob.
        mirror: whether it says the same as the preference before it: the other one of two choices, with signs changed.
    """

    question: Question
    num_subnets: int
    num_with: int
    effect: Interval | None
    gain: Interval | None
    good_share: float | None
    all_share: float | None
    mirror: bool = False

    @property
    def resolved(self) -> bool:
        """Whether the effect's interval excludes 0."""
        return excludes_zero(self.effect)


@dataclass(frozen=True)
class Judged:
    """Subnets of one space and what they reached.

    Attributes:
        space: of which the subnets are; the view of one training stage.
        indices: ``[n, num_knobs]``.
        scores, costs: ``[n]``; costs are positive.
    """

    space: SearchSpace
    indices: Indices
    scores: Array
    costs: Array


@dataclass(frozen=True)
class Fit:
    """What was found.

    Attributes:
        preferences: one a question.
        r2: share of the score's variance that the cost explains.
        residuals: ``[n]`` scores at equal cost.
    """

    preferences: tuple[Preference, ...]
    r2: float
    residuals: tuple[float, ...]


def excludes_zero(interval: Interval | None) -> bool:
    """Tell whether an interval lies on one side of 0."""
    return interval is not None and (interval.low > 0 or interval.high < 0)


def questions(space: SearchSpace) -> list[Question]:
    """Return what can be asked of a space: by kind and choice, for all of the network first, then by place.

    A knob counts for a choice only if it may have it, and only with two choices or more. A place that holds all knobs
    of a kind is not asked about again.
    """
    open_knobs = [(i, knob) for i, knob in enumerate(space.knobs) if len(knob.choices) > 1]
    found = []
    for kind in dict.fromkeys(knob.label.rpartition(".")[2] for _, knob in open_knobs):
        own = [(i, knob) for i, knob in open_knobs if knob.label.rpartition(".")[2] == kind]
        choices = in_order(choice for _, knob in own for choice in knob.choices)
        places = list(dict.fromkeys(_place(knob.label) for _, knob in own))
        for place in [NETWORK, *(places if len(places) > 1 else [])]:
            there = [(i, knob) for i, knob in own if place in (NETWORK, _place(knob.label))]
            asked = [(c, tuple(i for i, knob in there if c in knob.choices)) for c in choices]
            found += [Question(kind, place, choice, knobs) for choice, knobs in asked if knobs]
    return found


def in_order(choices: Iterable[Value]) -> list[Value]:
    """Return different choices: numbers ascending, others as they came."""
    found = list(dict.fromkeys(choices))
    plain = all(isinstance(c, (int, float)) for c in found)
    return sorted(found) if plain else found


def _place(label: str) -> str:
    """Return the part of the network that a knob belongs to."""
    return label.partition(".")[0] if "." in label else NETWORK


def is_mirror(asked: Sequence[Question], i: int) -> bool:
    """Tell whether a question is the second one about knobs that have two choices, so that its answer is known."""
    same = [q for q in asked if q.knobs == asked[i].knobs and (q.kind, q.place) == (asked[i].kind, asked[i].place)]
    of_kind = [q for q in asked if (q.kind, q.place) == (asked[i].kind, asked[i].place)]
    return len(same) == len(of_kind) == 2 and same[1] == asked[i]


def shares(space: SearchSpace, indices: Indices, asked: Sequence[Question]) -> Array:
    """Return ``[n, questions]``: the share of a subnet's active knobs with the choice, NaN where none is active."""
    active = space.active(indices)
    columns = []
    for question in asked:
        knobs = list(question.knobs)
        codes = np.array([space.knobs[i].choices.index(question.choice) for i in knobs])
        there = active[:, knobs]
        count = there.sum(1)
        has = (there & (indices[:, knobs] == codes)).sum(1)
        columns.append(np.where(count > 0, has / np.maximum(count, 1), np.nan))
    return np.array(columns, dtype=np.float64).reshape(len(asked), len(indices)).T


def cost_basis(costs: Array) -> Array:
    """Return ``[n, p]``, orthonormal: ``1, log cost, (log cost)^2``, as far as the costs tell them apart."""
    logs = np.log(costs)
    centred = logs - logs.mean()
    degree = min(2, len(np.unique(np.round(centred, 12))) - 1)
    scaled = centred / (np.abs(centred).max() or 1.0)
    basis: Array = np.linalg.qr(np.vander(scaled, degree + 1, increasing=True))[0]
    return basis


def resample_weights(n: int, seed: int, resamples: int = RESAMPLES) -> Array:
    """Return ``[resamples, n]``: how often each of ``n`` subnets is in each resample."""
    rng = generator(seed, "insights resamples", n)
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def effects(basis: Array, scores: Array, share: Array, weights: Array) -> Array:
    """Return ``[B, m]``: the slope of the score on each share, alone in the fit with the cost.

    Args:
        basis: ``[n, p]`` of the cost.
        scores: ``[n]``.
        share: ``[n, m]``; a subnet with NaN takes no part in that column's fit.
        weights: ``[B, n]`` of the subnets; one row of ones for the estimate.

    Returns:
        NaN where the cost, or the choice's absence, leaves nothing of the share to compare.
    """
    found = np.full((len(weights), share.shape[1]), np.nan)
    masks = ~np.isnan(share)
    for mask in np.unique(masks.T, axis=0):
        columns = np.flatnonzero((mask == masks.T).all(1))
        if mask.any():
            found[:, columns] = _slopes(basis[mask], scores[mask], share[np.ix_(mask, columns)], weights[:, mask])
    return found


def _slopes(basis: Array, scores: Array, share: Array, weights: Array) -> Array:
    """Return ``[B, m]`` slopes by weighted least squares, the basis projected out of both sides."""
    n, p = basis.shape
    y, s = scores - scores.mean(), share - share.mean(0)  # the constant is in the basis; this keeps the digits
    solve = np.linalg.pinv((weights @ (basis[:, :, None] * basis[:, None]).reshape(n, -1)).reshape(-1, p, p))
    with_y = weights @ (basis * y[:, None])
    with_s = (weights @ (basis[:, :, None] * s[:, None]).reshape(n, -1)).reshape(-1, p, s.shape[1])
    fitted = solve @ with_s
    above = weights @ (s * y[:, None]) - np.einsum("bp,bpm->bm", with_y, fitted)
    below = weights @ (s * s) - np.einsum("bpm,bpm->bm", with_s, fitted)
    enough = below > _COLLINEAR * n
    slopes: Array = np.where(enough, above / np.where(enough, below, 1.0), np.nan)
    return slopes


def residuals(basis: Array, scores: Array, weights: Array) -> Array:
    """Return ``[B, n]``: scores minus their fit by the cost, fitted with each row of weights."""
    n, p = basis.shape
    y = scores - scores.mean()
    gram = (weights @ (basis[:, :, None] * basis[:, None]).reshape(n, -1)).reshape(-1, p, p)
    coefficients = np.einsum("bpq,bq->bp", np.linalg.pinv(gram), weights @ (basis * y[:, None]))
    left: Array = y - coefficients @ basis.T
    return left


def good_weights(residual: Array, weights: Array) -> Array:
    """Return ``[B, n]``: the part of the weights that the best quarter by residual takes up."""
    order = np.argsort(-residual, axis=1, kind="stable")
    ranked = np.take_along_axis(weights, order, 1)
    before = ranked.cumsum(1) - ranked
    taken = np.clip(np.ceil(GOOD * residual.shape[1]) - before, 0, ranked)
    good: Array = np.empty_like(taken)
    np.put_along_axis(good, order, taken, 1)
    return good


def _mean_shares(share: Array, weights: Array) -> Array:
    """Return ``[B, m]`` weighted means over the subnets that have the knob; NaN where there are none."""
    total = weights @ (~np.isnan(share)).astype(np.float64)
    return np.where(total > 0, weights @ np.nan_to_num(share) / np.where(total > 0, total, 1.0), np.nan)


def bootstrap_interval(value: float, resampled: Array, n: int, coefficients: int) -> Interval | None:
    """Return the interval of the percentiles of a bootstrap, ``None`` where it has none.

    The percentiles are those of Hesterberg's expanded interval (The American Statistician 2015, Section 5.3): plain
    ones are too narrow for few subnets, by what Student's t is wider than the normal distribution and by the degrees
    of freedom that the fit takes.

    Args:
        value: the estimate.
        resampled: ``[B]``, NaN where a resample had no answer.
        n: subnets, more than there are coefficients.
        coefficients: of the fit.
    """
    from scipy.stats import norm, t

    known = resampled[~np.isnan(resampled)]
    if math.isnan(value) or len(known) < (1 - _UNDEFINED) * len(resampled):
        return None
    free = n - coefficients
    reach = float(t.ppf((1 + CONFIDENCE) / 2, free)) * math.sqrt(n / free)
    low, high = np.quantile(known, [float(norm.cdf(-reach)), float(norm.cdf(reach))])
    return Interval(*(round(float(v), _DIGITS) for v in (value, min(low, value), max(high, value))))


def preferences(judged: Judged, seed: int) -> Fit:
    """Return what goes with a good score at equal cost.

    Args:
        judged: :data:`MIN_SUBNETS` or more subnets.
        seed: of the resamples.
    """
    asked = questions(judged.space)
    share = shares(judged.space, judged.indices, asked)
    basis, weights = cost_basis(judged.costs), resample_weights(len(judged.scores), seed)
    once = np.ones((1, len(judged.scores)))
    residual = residuals(basis, judged.scores, once)
    slopes, slopes_again = (effects(basis, judged.scores, share, w) for w in (once, weights))
    good, good_again = (
        _mean_shares(share, good_weights(residuals(basis, judged.scores, w), w)) for w in (once, weights)
    )
    mean, mean_again = (_mean_shares(share, w) for w in (once, weights))
    found = []
    for i, question in enumerate(asked):
        count, some, all_of_it = (int(mask.sum()) for mask in _counts(share[:, i]))
        size = (count, basis.shape[1] + 1)
        enough = min(some, count - all_of_it) >= MIN_EACH and size[0] > size[1]
        effect = bootstrap_interval(float(slopes[0, i]), slopes_again[:, i], *size) if enough else None
        more = float(good[0, i] - mean[0, i])
        gain = bootstrap_interval(more, good_again[:, i] - mean_again[:, i], *size) if enough else None
        known = (_known(good[0, i]), _known(mean[0, i]))
        found.append(Preference(question, count, some, effect, gain, *known, is_mirror(asked, i)))
    variance = float(((judged.scores - judged.scores.mean()) ** 2).sum())
    r2 = round(1 - float((residual**2).sum()) / variance, _DIGITS) if variance > 0 else 0.0
    return Fit(tuple(found), r2, tuple(round(float(r), _DIGITS) for r in residual[0]))


def _counts(share: Array) -> tuple[Mask, Mask, Mask]:
    """Return where a share is known, where it is over 0, and where it is 1."""
    return ~np.isnan(share), np.nan_to_num(share) > 0, np.nan_to_num(share) == 1


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), _DIGITS)


def differences(first: Judged, second: Judged, seed: int) -> list[tuple[Question, Interval | None]]:
    """Return how each whole-network effect differs: in ``first`` minus in ``second``, paired.

    Args:
        first, second: the same architectures in the same order, at two stages. Kinds and choices that only one stage
            has, such as bit-widths, are left out.
        seed: of the resamples, which take the same architectures from both.
    """
    sides = [
        {(q.kind, q.choice): q for q in questions(judged.space) if q.place == NETWORK} for judged in (first, second)
    ]
    names = [name for name in sides[0] if name in sides[1]]
    n = len(first.scores)
    once, weights = np.ones((1, n)), resample_weights(n, seed)
    values, again = np.zeros((1, len(names))), np.zeros((len(weights), len(names)))
    enough, fewest = np.full(len(names), True), np.full(len(names), n)
    for judged, asked, sign in zip((first, second), sides, (1.0, -1.0), strict=True):
        share = shares(judged.space, judged.indices, [asked[name] for name in names])
        basis = cost_basis(judged.costs)
        values = values + sign * effects(basis, judged.scores, share, once)
        again = again + sign * effects(basis, judged.scores, share, weights)
        count, some, all_of_it = (mask.sum(0) for mask in _counts(share))
        enough &= np.minimum(some, count - all_of_it) >= MIN_EACH
        fewest = np.minimum(fewest, count)
    return [
        (sides[0][name], bootstrap_interval(float(values[0, i]), again[:, i], int(fewest[i]), 4) if enough[i] else None)
        for i, name in enumerate(names)
    ]
