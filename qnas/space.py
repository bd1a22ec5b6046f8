"""Search spaces: knobs, samples and their keys, sites and layers. No torch.

A *sample* is a flat dict, label -> value, that names a subnet completely: its architecture, every layer's bit-widths
and whatever its quantizers add. Equal subnets share one *key*.
"""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qnas.errors import ConfigError, unknown_name
from qnas.layers import FLOAT_BITS, LayerSpec

if TYPE_CHECKING:
    from qnas.nn.supernet import BuildContext, Supernet

Value = int | float | str | bool
Sample = dict[str, Value]
Indices = np.ndarray[Any, np.dtype[np.int64]]
"""``[n, num_knobs]`` positions in each knob's choices: many samples at once."""

GRANULARITIES = ("network", "stage", "block", "layer")
BIT_ROLES = ("w_bits", "a_bits")
KEY_LENGTH = 16
LARGEST_SMALL_IMAGE = 64  # pixels; above, spaces take their large form and a recipe's table `large` counts


@dataclass(frozen=True)
class Condition:
    """Holds where the knob ``label`` is itself active and has one of ``values``."""

    label: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Knob:
    """One choice of a space.

    Attributes:
        label: unique in the space; no '/' (NNI's rule).
        choices: JSON and TOML safe, from the cheapest to the most expensive.
        role: ``architecture``, ``w_bits``, ``a_bits`` or ``quantizer``.
        active_if: all must hold, else the knob changes nothing.
        private: what each choice of a quantizer's knob has for itself in the layers whose input it changes: ``norm``
            (batch normalisation), ``conv`` (the weights and their quantizer).
    """

    label: str
    choices: tuple[Value, ...]
    role: str = "architecture"
    active_if: tuple[Condition, ...] = ()
    private: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.label or "/" in self.label:
            raise ConfigError(f"A knob's label must not be empty or hold '/': {self.label!r}. Rename the knob.")
        if not self.choices or len(set(self.choices)) != len(self.choices):
            raise ConfigError(
                f"Knob {self.label!r} needs one or more different choices; given: {list(self.choices)}. "
                "Remove the repeated ones."
            )


@dataclass(frozen=True)
class Site:
    """A place in the network where numbers are computed or put on a grid; the unit of bit-widths and costs.

    Attributes:
        name: unique, for example ``stage1.block2.expand``.
        depends_on: labels of all architecture knobs that ``describe`` reads.
        describe: sample -> the layer, without bits, or ``None`` where the sample leaves it out.
        stage, block: the groups for coarser bit granularities; ``None`` groups the site by itself.
        w_bits, a_bits: bit-widths that are not searched; ``None`` takes them from the scheme's knobs.
        active_if: when the site exists, as conditions for the knobs that belong to it alone.
        branch: the name under which a quantizer of the input may offer several branches to choose among (BASQ); sites
            of one name have one choice together, and exist together. ``None`` where there is nothing to choose.
    """

    name: str
    depends_on: tuple[str, ...]
    describe: Callable[[Mapping[str, Value]], LayerSpec | None]
    stage: str | None = None
    block: str | None = None
    w_bits: int | None = None
    a_bits: int | None = None
    active_if: tuple[Condition, ...] = ()
    branch: str | None = None

    def group(self, granularity: str) -> str | None:
        """Return the prefix of this site's bit knobs; ``None`` for the whole network."""
        groups = {"network": None, "stage": self.stage or self.name, "block": self.block or self.name}
        return groups.get(granularity, self.name)


@dataclass(frozen=True)
class QuantScheme:
    """How a space is quantized, as far as its knobs and costs go.

    Attributes:
        w_bits, a_bits: bit-widths to choose among, ascending.
        granularity: how many layers share one bit-width: one of :data:`GRANULARITIES`.
        edge_bits: weights and activations of the first and last layer, and the tensors that are only put on a grid.
        site_knobs: what the quantizers add for a site; labels read ``site.plugin.name``, or ``branch.plugin.name`` for
            the sites of one branch name together.
        w_zero_points: whether quantized weights have zero points.
        conv_only: whether everything but convolutions stays in float: sums, pooling, the classifier.
    """

    w_bits: tuple[int, ...] = (4,)
    a_bits: tuple[int, ...] = (4,)
    granularity: str = "network"
    edge_bits: int = 8
    site_knobs: Callable[[Site], Iterable[Knob]] | None = None
    w_zero_points: bool = False
    conv_only: bool = False

    def __post_init__(self) -> None:
        for name, bits in (("w_bits", self.w_bits), ("a_bits", self.a_bits)):
            if not bits or any(not 2 <= b <= 8 for b in bits) or list(bits) != sorted(set(bits)):
                raise ConfigError(
                    f"{name} must be different bit-widths from 2 to 8, ascending; given: {list(bits)}. "
                    f"For example {name} = [2, 3, 4]."
                )
        if self.granularity not in GRANULARITIES:
            raise ConfigError(unknown_name("bits_granularity", self.granularity, GRANULARITIES, "Choose one of these."))


class SearchSpace(ABC):
    """A family of subnets: knobs, the layers that a sample makes of them, and the supernet that holds the weights.

    Attributes:
        brings_weights: whether :meth:`build` gives weights that training, of a subnet alone too, is to start from.
    """

    brings_weights: bool = False
    _pixels: int | None = None  # of all images, see sized()

    def __init__(
        self,
        name: str,
        architecture: Sequence[Knob],
        sites: Sequence[Site],
        scheme: QuantScheme,
        *,
        image_size: int,
        num_classes: int,
    ) -> None:
        self.name = name
        self.sites = _only_convolutions(sites, architecture) if scheme.conv_only else tuple(sites)
        self.scheme = scheme
        self.image_size = image_size
        self.num_classes = num_classes
        knobs = {knob.label: knob for knob in architecture}
        if len(knobs) != len(architecture):
            raise ConfigError(f"Space {name!r} names a knob twice. Every label must be unique.")
        self._bit_labels: dict[str, tuple[str | None, str | None]] = {}
        self._site_labels: dict[str, tuple[str, ...]] = {}
        for site in self.sites:
            self._bit_labels[site.name] = (
                self._bit_knob(knobs, site, "w_bits", site.w_bits),
                self._bit_knob(knobs, site, "a_bits", site.a_bits),
            )
            self._site_labels[site.name] = self._plugin_knobs(knobs, site)
        self.knobs: tuple[Knob, ...] = tuple(knobs.values())
        self.position = {knob.label: i for i, knob in enumerate(self.knobs)}
        self._index = [{value: i for i, value in enumerate(knob.choices)} for knob in self.knobs]
        for knob in self.knobs:
            for condition in knob.active_if:
                if self.position.get(condition.label, len(knobs)) >= self.position[knob.label]:
                    raise ConfigError(
                        f"Knob {knob.label!r} depends on {condition.label!r}, which must be an earlier knob."
                    )

    def _bit_knob(self, knobs: dict[str, Knob], site: Site, role: str, fixed: int | None) -> str | None:
        if fixed is not None:
            return None
        group = site.group(self.scheme.granularity)
        label = role if group is None else f"{group}.{role}"
        own = group is not None and group in (site.block, site.name)
        knobs.setdefault(label, Knob(label, getattr(self.scheme, role), role, site.active_if if own else ()))
        return label

    def _plugin_knobs(self, knobs: dict[str, Knob], site: Site) -> tuple[str, ...]:
        if self.scheme.site_knobs is None:
            return ()
        labels = []
        for asked in self.scheme.site_knobs(site):
            knob = replace(asked, active_if=(*site.active_if, *asked.active_if))
            shared = site.branch is not None and knob.label.startswith(f"{site.branch}.")
            known = knobs.get(knob.label)
            if not (shared or knob.label.startswith(f"{site.name}.")) or (known is not None and not shared):
                raise ConfigError(
                    f"A quantizer's knob for site {site.name!r} must be labelled '{site.name}.<plugin>.<name>' and be "
                    f"new; given: {knob.label!r}."
                )
            if known is not None and known != knob:
                raise ConfigError(
                    f"Knob {knob.label!r} is offered by several sites, but not alike: {known} and {knob}. Sites of one "
                    "branch name must exist together, and their quantizers offer the same choices."
                )
            knobs[knob.label] = knob
            labels.append(knob.label)
        return tuple(labels)

    # --- samples -----------------------------------------------------------------------------------------------

    def validate(self, sample: Mapping[str, Value]) -> None:
        """Raise ``ConfigError`` unless ``sample`` names every knob with an allowed value."""
        for label in sample:
            if label not in self.position:
                raise ConfigError(unknown_name("The knob", label, self.position, f"Space: {self.name!r}."))
        for knob, index in zip(self.knobs, self._index, strict=True):
            if knob.label not in sample:
                raise ConfigError(
                    f"The sample lacks knob {knob.label!r} of space {self.name!r}; allowed: {list(knob.choices)}."
                )
            if sample[knob.label] not in index:
                raise ConfigError(
                    f"Knob {knob.label!r} of space {self.name!r} cannot be {sample[knob.label]!r}; "
                    f"allowed: {list(knob.choices)}."
                )

    def is_active(self, label: str, sample: Mapping[str, Value]) -> bool:
        """Tell whether the knob changes anything in this sample."""
        knob = self.knobs[self.position[label]]
        return all(sample[c.label] in c.values and self.is_active(c.label, sample) for c in knob.active_if)

    def canonical(self, sample: Mapping[str, Value]) -> Sample:
        """Return the sample with every inactive knob at its first choice, in the order of the knobs."""
        self.validate(sample)
        return {
            knob.label: knob.choices[index[sample[knob.label]] if self.is_active(knob.label, sample) else 0]
            for knob, index in zip(self.knobs, self._index, strict=True)
        }

    def key(self, sample: Mapping[str, Value]) -> str:
        """Return the short name that all samples of one subnet share (hexadecimal, of the canonical sample).

        Bits of what the sample leaves out are no part of it, so it stays the same when a space gets more bit-widths.
        """
        named = {
            label: value
            for label, value in self.canonical(sample).items()
            if self.knobs[self.position[label]].role not in BIT_ROLES or self.is_active(label, sample)
        }
        text = json.dumps(named, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]

    def lowest(self) -> Sample:
        """Return the sample of first choices: the smallest architecture at the lowest bit-widths."""
        return {knob.label: knob.choices[0] for knob in self.knobs}

    def highest(self) -> Sample:
        """Return the sample of last choices: the largest architecture at the highest bit-widths."""
        return {knob.label: knob.choices[-1] for knob in self.knobs}

    @property
    def num_samples(self) -> int:
        """Number of samples, those of equal subnets counted apart."""
        total = 1
        for knob in self.knobs:
            total *= len(knob.choices)
        return total

    # --- many samples at once ----------------------------------------------------------------------------------

    def draw(self, rng: np.random.Generator, n: int) -> Indices:
        """Draw ``n`` samples, each knob uniformly; returns ``[n, num_knobs]`` positions."""
        sizes = np.array([len(knob.choices) for knob in self.knobs])
        return rng.integers(0, sizes, size=(n, len(sizes)), dtype=np.int64)

    def indices(self, samples: Sequence[Mapping[str, Value]]) -> Indices:
        """Return samples as ``[n, num_knobs]`` positions in the knobs' choices."""
        rows = [[index[s[k.label]] for k, index in zip(self.knobs, self._index, strict=True)] for s in samples]
        return np.array(rows, dtype=np.int64).reshape(len(samples), len(self.knobs))

    def sample(self, row: Iterable[int]) -> Sample:
        """Return the sample at one row of positions."""
        return {knob.label: knob.choices[int(i)] for knob, i in zip(self.knobs, row, strict=True)}

    def active(self, indices: Indices) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return ``[n, num_knobs]``: whether each knob changes anything."""
        mask = np.ones(indices.shape, dtype=bool)
        for column, knob in enumerate(self.knobs):
            for condition in knob.active_if:
                source = self.position[condition.label]
                allowed = np.array([value in condition.values for value in self.knobs[source].choices])
                mask[:, column] &= mask[:, source] & allowed[indices[:, source]]
        return mask

    def encode(self, indices: Indices) -> np.ndarray[Any, np.dtype[np.float32]]:
        """One-hot encode samples for a predictor; an inactive knob's columns are all zero.

        Args:
            indices: ``[n, num_knobs]``.

        Returns:
            ``[n, sum of the numbers of choices]``.
        """
        active = self.active(indices)
        columns = []
        for column, knob in enumerate(self.knobs):
            hot = np.eye(len(knob.choices), dtype=np.float32)[indices[:, column]]
            columns.append(hot * active[:, column, None])
        return np.concatenate(columns, axis=1)

    def restrict(self, **choices: Iterable[Value]) -> SearchSpace:
        """Return a view whose bit knobs keep only some choices, for example ``restrict(w_bits=[4], a_bits=[4])``.

        Its samples are samples of this space, with the same keys; a training stage draws from such a view.

        Raises:
            ConfigError: a role that is none, or a knob that would be left without a choice.
        """
        view = copy.copy(self)
        for role, kept in choices.items():
            wanted = set(kept)
            if role not in BIT_ROLES or not wanted <= set(getattr(self.scheme, role)):
                raise ConfigError(
                    f"A stage of space {self.name!r} cannot be restricted to {role} = {sorted(map(str, wanted))}; "
                    f"the space has w_bits = {list(self.scheme.w_bits)}, a_bits = {list(self.scheme.a_bits)}."
                )
            view.knobs = tuple(
                replace(knob, choices=tuple(c for c in knob.choices if c in wanted)) if knob.role == role else knob
                for knob in view.knobs
            )
        view._index = [{value: i for i, value in enumerate(knob.choices)} for knob in view.knobs]
        return view

    def floating(self, *roles: str) -> SearchSpace:
        """Return a view in which ``w_bits``, ``a_bits`` or both are float: 32 everywhere, in samples and in costs."""
        view = copy.copy(self)
        view.knobs = tuple(replace(knob, choices=(FLOAT_BITS,)) if knob.role in roles else knob for knob in self.knobs)
        view._index = [{value: i for i, value in enumerate(knob.choices)} for knob in view.knobs]
        w_bits, a_bits = (FLOAT_BITS if role in roles else None for role in BIT_ROLES)
        view.sites = tuple(
            replace(
                site, w_bits=site.w_bits and (w_bits or site.w_bits), a_bits=site.a_bits and (a_bits or site.a_bits)
            )
            for site in self.sites
        )
        return view

    def pin(self, sample: Mapping[str, Value]) -> SearchSpace:
        """Return a view with one sample, this one; its key is the sample's key."""
        view = copy.copy(self)
        canonical = self.canonical(sample)
        view.knobs = tuple(replace(knob, choices=(canonical[knob.label],)) for knob in self.knobs)
        view._index = [{knob.choices[0]: 0} for knob in view.knobs]
        return view

    def sized(self, pixels: int) -> SearchSpace:
        """Return a view whose subnets take images of this size, whatever their samples say; costs stay the samples'."""
        view = copy.copy(self)
        view._pixels = pixels
        return view

    # --- layers ------------------------------------------------------------------------------------------------

    def layers(self, sample: Mapping[str, Value]) -> tuple[LayerSpec, ...]:
        """Return the layers that the sample makes, in the order of the data's way through them."""
        described = (self.layer(site, sample) for site in self.sites)
        return tuple(layer for layer in described if layer is not None)

    def layer(self, site: Site, sample: Mapping[str, Value]) -> LayerSpec | None:
        """Return the layer that the sample makes of one site; ``None`` where it leaves the site out."""
        spec = site.describe(sample)
        return None if spec is None else self._with_bits(site, spec, sample)

    def _with_bits(self, site: Site, spec: LayerSpec, sample: Mapping[str, Value]) -> LayerSpec:
        w_label, a_label = self._bit_labels[site.name]
        w_bits = site.w_bits if w_label is None else int(sample[w_label])
        a_bits = site.a_bits if a_label is None else int(sample[a_label])
        assert w_bits is not None
        assert a_bits is not None
        zero_points = self.scheme.w_zero_points and spec.kind != "quantize" and w_bits < FLOAT_BITS
        return replace(
            spec,
            w_bits=w_bits,
            a_bits=a_bits,
            w_zero_points=zero_points,
            w_fixed=w_label is None,
            a_fixed=a_label is None,
        )

    def bit_labels(self, site: str) -> tuple[str | None, str | None]:
        """Return the knobs that set the weight and activation bits of a site; ``None`` where they are fixed."""
        return self._bit_labels[site]

    def bit_choices(self, site: Site) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the weight and activation bit-widths that a site can have."""
        w_bits = self.scheme.w_bits if site.w_bits is None else (site.w_bits,)
        a_bits = self.scheme.a_bits if site.a_bits is None else (site.a_bits,)
        return w_bits, a_bits

    def site_values(self, site: str, sample: Mapping[str, Value]) -> dict[str, Value]:
        """Return the values of the knobs that quantizers added for a site, by their full labels."""
        return {label: sample[label] for label in self._site_labels[site]}

    def private_knobs(self, site: str, part: str) -> tuple[Knob, ...]:
        """Return the knobs of quantizers at a site each of whose choices has ``part`` for itself (``Knob.private``)."""
        knobs = (self.knobs[self.position[label]] for label in self._site_labels[site])
        return tuple(knob for knob in knobs if part in knob.private)

    def resolution(self, sample: Mapping[str, Value]) -> int:
        """Return the height and width of the input images of this sample, in pixels."""
        return self._pixels or int(sample.get("resolution", self.image_size))

    def torchvision_names(self) -> Mapping[str, str]:
        """Return where torchvision's network of this kind keeps our layers' weights; empty where there is none.

        Keys are the names of layers (``stem``) and, with ``.bn`` behind, of their batch normalisations; values name
        the modules in torchvision's ``state_dict`` (``conv1``). Called when a run starts from such a file.
        """
        return {}

    @abstractmethod
    def build(self, context: BuildContext) -> Supernet:
        """Build the supernet that holds the shared weights of every sample; the only method that needs torch."""


def _only_convolutions(sites: Sequence[Site], architecture: Sequence[Knob]) -> tuple[Site, ...]:
    """Return the sites with 32 bits, which stand for float, wherever there is no convolution.

    A convolution's output is put on a grid, and its batch normalisation stays in float.
    """
    samples = [{knob.label: knob.choices[i] for knob in architecture} for i in (-1, 0)]

    def is_convolution(site: Site) -> bool:
        found = (site.describe(sample) for sample in samples)
        return next((spec.kind for spec in found if spec is not None), "") == "conv"

    def raw(site: Site) -> Site:
        def describe(sample: Mapping[str, Value]) -> LayerSpec | None:
            spec = site.describe(sample)
            return spec and replace(spec, raw_norm=spec.out_channels * spec.normalised, raw_grid=True)

        return replace(site, describe=describe)

    return tuple(raw(s) if is_convolution(s) else replace(s, w_bits=FLOAT_BITS, a_bits=FLOAT_BITS) for s in sites)
