"""Bit-widths of a sample, set as a user says them. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from qnas.errors import ConfigError
from qnas.space import BIT_ROLES, Knob, Sample, SearchSpace, Value

FLAGS = {"w_bits": "--w-bits", "a_bits": "--a-bits"}


def set_bits(
    space: SearchSpace,
    sample: Mapping[str, Value],
    w_bits: str | None = None,
    a_bits: str | None = None,
    layers: Sequence[str] = (),
) -> Sample:
    """Return the canonical sample with other bit-widths.

    Args:
        space: of the sample.
        sample: what is not said stays as it is here.
        w_bits, a_bits: one number for all knobs of the role, or one for each in the order of the layers: ``8,4,4``.
        layers: ``PATTERN=W/A``, ``PATTERN=W`` or ``PATTERN=/A``; patterns are those of shells and match the names of
            layers, or of what shares a bit-width.

    Raises:
        ConfigError: a number that is none of the space's, a wrong count, or a pattern that matches nothing.
    """
    found = dict(sample)
    for role, text in (("w_bits", w_bits), ("a_bits", a_bits)):
        if text is None:
            continue
        knobs = [knob for knob in space.knobs if knob.role == role]
        parts = text.split(",")
        if len(parts) not in (1, len(knobs)):
            raise ConfigError(
                f"{FLAGS[role]} takes one number, or {len(knobs)}, one for each of {_listed(knobs)}; given: "
                f"{len(parts)} numbers. Correct it."
            )
        for knob, part in zip(knobs, parts * (len(knobs) if len(parts) == 1 else 1), strict=True):
            found[knob.label] = _value(knob, part, FLAGS[role])
    for text in layers:
        found.update(_of_pattern(space, text))
    return space.canonical(found)


def _of_pattern(space: SearchSpace, text: str) -> Sample:
    pattern, equals, bits = text.partition("=")
    parts = bits.split("/")
    if not (pattern and equals and bits.strip("/")) or len(parts) > 2:
        raise ConfigError(
            f"--layer {text!r} is not of the form PATTERN=W/A. For example --layer 'stage3.*=2/4', or 'stage3.*=/4' "
            "for activations alone."
        )
    found: Sample = {}
    for role, part in zip(BIT_ROLES, parts, strict=False):
        if not part:
            continue
        knobs = [k for k in space.knobs if k.role == role and fnmatchcase(_group(k), pattern)]
        if not knobs:
            every = [knob for knob in space.knobs if knob.role == role]
            raise ConfigError(
                f"--layer {text!r} matches nothing in space {space.name!r} that has {role}; allowed: {_listed(every)}. "
                "Correct the pattern."
            )
        found.update({knob.label: _value(knob, part, "--layer") for knob in knobs})
    return found


def _group(knob: Knob) -> str:
    """Return what shares the knob's bit-width: ``stage1.block1`` of ``stage1.block1.w_bits``, else ``network``."""
    return knob.label.rpartition(".")[0] or "network"


def _listed(knobs: Sequence[Knob]) -> str:
    names = [_group(knob) for knob in knobs]
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:4])}, ..., {names[-1]}"


def _value(knob: Knob, text: str, flag: str) -> Value:
    for choice in knob.choices:
        if str(choice) == text.strip():
            return choice
    raise ConfigError(
        f"{flag} cannot set {knob.label} to {text.strip()!r}: the run was trained for "
        f"{', '.join(map(str, knob.choices))} there. Choose one of these."
    )
