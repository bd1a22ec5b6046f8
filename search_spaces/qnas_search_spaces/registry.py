"""Registers the built-in search spaces, as a third party would."""

from __future__ import annotations

from collections.abc import Iterable

from qnas.hookspecs import ComponentSpec, hookimpl


@hookimpl
def qnas_components() -> Iterable[ComponentSpec]:
    """Yield the search spaces."""
    yield ComponentSpec(
        "space",
        "basq-mbv1",
        "qnas_search_spaces.basq:BasqMobileNetV1Space",
        "MobileNetV1 of BASQ's blocks for few bits, every layer with a skip",
    )
    yield ComponentSpec(
        "space",
        "basq-mbv2",
        "qnas_search_spaces.basq:BasqMobileNetV2Space",
        "MobileNetV2 of BASQ's blocks for few bits, every layer with a skip (Flexconn)",
    )
    yield ComponentSpec(
        "space",
        "basq-resnet18",
        "qnas_search_spaces.basq:BasqResNet18Space",
        "ResNet-18 of BASQ's blocks for few bits; FracBNN's and pre-activation blocks beside them",
    )
    yield ComponentSpec(
        "space",
        "basq-resnet20",
        "qnas_search_spaces.basq:BasqResNet20Space",
        "ResNet-20 for CIFAR of BASQ's blocks for few bits; FracBNN's and pre-activation blocks beside them",
    )
    yield ComponentSpec(
        "space",
        "mbv1",
        "qnas_search_spaces.mbv1:MobileNetV1Space",
        "MobileNetV1, published or with elastic kernel, widths, depth and resolution",
    )
    yield ComponentSpec(
        "space",
        "mbv2",
        "qnas_search_spaces.mbv2:MobileNetV2Space",
        "MobileNetV2, published or with elastic kernel, expansion, depth and resolution, as OFA and OQAT search it",
    )
    yield ComponentSpec(
        "space",
        "mbv3",
        "qnas_search_spaces.mbv3:MobileNetV3Space",
        "MobileNetV3 with elastic kernel, expansion, depth and resolution, as OFA and OQAT search it",
    )
    yield ComponentSpec(
        "space",
        "resnet18",
        "qnas_search_spaces.resnet:ResNet18Space",
        "ResNet-18, published or with elastic depth, widths and resolution",
    )
    yield ComponentSpec(
        "space",
        "resnet20",
        "qnas_search_spaces.resnet:ResNet20Space",
        "ResNet-20 for CIFAR, published or with elastic depth, widths and resolution",
    )
    yield ComponentSpec(
        "space",
        "resnet50",
        "qnas_search_spaces.resnet:ResNet50Space",
        "ResNet-50, published or with elastic depth, widths, bottleneck expansion and resolution, as OFA searches it",
    )
    yield ComponentSpec(
        "space",
        "module",
        "qnas_search_spaces.traced.space:ModuleSpace",
        "your own network, traced by torch.fx: --space module:PACKAGE.MODULE:FACTORY",
    )
