"""What the parts of a supernet are told when a subnet is made the active one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qnas.layers import LayerSpec
from qnas.space import Value


@dataclass(frozen=True)
class ActiveSubnet:
    """The active subnet, described once for all parts.

    Attributes:
        sample: every knob's value.
        layers: descriptions by site; a site that is missing is left out of the subnet.
        values: of the knobs that quantizers added, by site and full label.
    """

    sample: Mapping[str, Value]
    layers: Mapping[str, LayerSpec]
    values: Mapping[str, Mapping[str, Value]]
