"""Branches of clip values with different L2 decays, to be searched.

Kim et al., "BASQ: Branch-wise Activation-clipping Search Quantization for Sub-4-bit Neural Networks", ECCV 2022,
Sec. 4; what the text leaves open is as in its code, https://github.com/HanByulKim/BASQ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from qnas.errors import ConfigError
from qnas.nn.quantizer import QuantizerSite, SiteContext
from qnas.space import Knob, Site
from qnas_plugins.quantizers.pact import CLIP_START, FLOOR, LearnedClip

LAMBDAS = (1e-2, 5e-3, 1e-3, 5e-4, 1e-4, 5e-5, 1e-5)  # of MobileNetV2
CONVOLUTIONS = ("shared", "private")


class BASQ(LearnedClip):
    """PACT with one pair (lambda, alpha) a branch (Eq. 3); which branch is used is a knob of the space.

    Branches are offered where the space says so (``Site.branch``): for each residual block of a ResNet one choice, in
    MobileNets for what the depthwise convolution takes in. Each site of a choice has clip values of its own. All other
    activations have LSQ's grid, as in the paper. The batch normalisations around a branch are private to it, the
    convolution is shared (Sec. 4.1).

    Args:
        site: where it works.
        lambdas: L2 decay of each branch's clip value; equal ones are branches like any other. A single one leaves
            nothing to choose: PACT where BASQ has its branches.
        clip_start: every alpha at the start.
        floor: no alpha is ever less.
        convolution: ``shared`` by the branches, or ``private`` to each (the ablation of Table 7).
    """

    def __init__(
        self,
        site: QuantizerSite,
        *,
        lambdas: Sequence[float] = LAMBDAS,
        clip_start: float = CLIP_START,
        floor: float = FLOOR,
        convolution: str = "shared",
    ) -> None:
        _check(lambdas, convolution)
        branched = site.branch is not None and not site.fixed
        super().__init__(site, tuple(map(float, lambdas)), clip_start, floor, plain=not branched)
        self._label = _label(site.branch) if branched and len(lambdas) > 1 else None

    @classmethod
    def knobs(cls, site: Site, **options: Any) -> Iterable[Knob]:
        """Return the choice of the branch, by its number, where the space offers one."""
        lambdas, convolution = options.get("lambdas", LAMBDAS), options.get("convolution", "shared")
        _check(lambdas, convolution)
        if site.branch is None or site.a_bits is not None or len(lambdas) < 2:
            return ()
        private = ("norm",) if convolution == "shared" else ("norm", "conv")
        return [Knob(_label(site.branch), tuple(range(len(lambdas))), "quantizer", private=private)]

    def branch(self, ctx: SiteContext) -> int:
        """Return the number of the active branch."""
        return 0 if self._label is None else int(ctx.values[self._label])


def _label(branch: str | None) -> str:
    """Return the label of a choice."""
    return f"{branch}.basq.branch"


def _check(lambdas: Any, convolution: Any) -> None:
    numbers = isinstance(lambdas, (list, tuple)) and all(type(value) in (int, float) for value in lambdas)
    if not numbers or not lambdas:
        raise ConfigError(
            f"basq: lambdas must be a list of L2 decays, one a branch; given: {lambdas!r}. For example lambdas = "
            "[1e-2, 1e-3, 1e-4] in [quantization.act_options]."
        )
    if convolution not in CONVOLUTIONS:
        raise ConfigError(
            f"basq: convolution must be one of {', '.join(CONVOLUTIONS)}; given: {convolution!r}. Change it in "
            "[quantization.act_options]."
        )
