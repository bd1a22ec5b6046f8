"""Trained nets that teach the subnets of another run: found, checked, and asked about that run's images.

A teacher sees what its own run would have fed it: pixels are recovered from this run's normalised images, normalised
as its own were, and resized to its resolution. It is extracted, calibrated and folded as it is judged, and not trained.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qnas import components
from qnas.choice import Choice, find
from qnas.config import MODULE_SPACE, load_config
from qnas.data import Data, PixelGrid, resize
from qnas.errors import ConfigError, StoreError
from qnas.initial import OWN, InitReport, file_digest, load_initial_weights, read_tensors
from qnas.nn.subnet import Subnet
from qnas.protocols import State, TrainingContext
from qnas.retrained import is_alone
from qnas.run import Run

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of red, green and blue from 0 to 1, as torchvision normalises
IMAGENET_STD = (0.229, 0.224, 0.225)
WHOLE = 1e-3  # a pixel so near to a whole number was one before it was normalised


@dataclass(frozen=True)
class ChannelGrid:
    """Normalisation of 8-bit pixels with a mean and a deviation for each channel, as fractions of 255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return ``[N, C, H, W]`` pixels, from 0 to 255, as the network takes them."""
        mean, std = (torch.tensor(v, device=pixels.device).reshape(1, -1, 1, 1) for v in (self.mean, self.std))
        return (pixels / 255 - mean) / std


class Teacher:
    """A net in evaluation mode, asked about the images of another run.

    Args:
        subnet: folded.
        device: where it answers.
        given: the grid of the images that it is shown.
        takes: the grid, or the normalisation, that it was trained with.
    """

    def __init__(self, subnet: Subnet, device: torch.device, given: PixelGrid, takes: PixelGrid | ChannelGrid) -> None:
        self.subnet = subnet.to(device).eval()
        self.given = given
        self.takes = takes

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits ``[N, classes]`` of images ``[N, C, S, S]``, normalised on the given grid; detached."""
        images = images.float()
        if self.takes != self.given:
            images = self.takes.normalise(self._pixels(images))
        images = resize(images, self.subnet.resolution).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.subnet(images)
        return logits.float()

    def _pixels(self, images: Tensor) -> Tensor:
        """Return the pixels that these normalised images had; whole numbers exactly, others to rounding errors."""
        pixels = images / self.given.scale + self.given.zero_point
        whole = pixels.round()
        return torch.where((pixels - whole).abs() < WHOLE, whole, pixels)


def teacher_of_run(
    path: Path, config: str | None, stage: str | None, context: TrainingContext
) -> tuple[Teacher, State]:
    """Return a net of a finished run as a teacher, and what names it.

    Args:
        path: of the run.
        config: as users name subnets; ``None`` for the chosen point of the last search or, where nothing was searched,
            the largest subnet.
        stage: of the training, or ``alone/FOLDER``; ``None`` for that of the search, else the last one.
        context: of the training that it teaches. Where it has a record, the same net is meant, whatever was searched
            in its run since then.

    Raises:
        QnasError: there is no such run or net, it is not trained to its end, or it answers other classes.
    """
    path = path.absolute()
    with Run.read(path, context.registry, context.device) as run:
        if run.store.read_json(path / "data.json", {}).get("digest") == context.data.digest:
            run.__dict__["data"] = context.data  # the same images need not be loaded twice
        _check_data(path, run.data, context.data)
        choice = _recorded(context) or _choice(run, config, stage)
        checkpoint = run.stages.checkpoint(choice.stage)
        evaluator = run.stages.evaluator(choice.stage)
        named = {
            "path": str(path),
            "stage": choice.stage,
            "key": evaluator.supernet.space.key(choice.sample),
            "sample": choice.sample,
            "weights": str(checkpoint.relative_to(path)),
            "sha256": file_digest(checkpoint),
        }
        subnet = evaluator.subnet(choice.sample)
        return Teacher(subnet, context.device, context.data.pixels, run.data.pixels), named


def _recorded(context: TrainingContext) -> Choice | None:
    if not context.recorded:
        return None
    return Choice(dict(context.recorded["sample"]), str(context.recorded["stage"]))


def _choice(run: Run, config: str | None, stage: str | None) -> Choice:
    """Return the net that the user means."""
    if config is None and not is_alone(stage):
        searched = [f for f in run.fronts() if stage in (None, f["stage"]) and f["points"]]
        config = None if searched else "largest"
    return find(run, config, stage=stage)


def _check_data(path: Path, theirs: Data, ours: Data) -> None:
    """Raise ``ConfigError`` where the teacher's images or classes are not of this run's kind."""
    if theirs.channels != ours.channels:
        raise ConfigError(
            f"The teacher {path} takes images of {theirs.channels} channels, but those of data set {ours.name!r} have "
            f"{ours.channels}. Give a teacher that was trained on such images."
        )
    if theirs.num_classes != ours.num_classes:
        raise ConfigError(
            f"The teacher {path} answers {theirs.num_classes} classes, but data set {ours.name!r} has "
            f"{ours.num_classes}. Give a teacher that was trained on the same classes."
        )
    pairs = zip(theirs.class_names, ours.class_names, strict=True)
    for number, (their, our) in enumerate(pairs):
        if their != our:
            raise ConfigError(
                f"The teacher {path} calls class {number} {their!r}, but data set {ours.name!r} calls it {our!r}, so "
                "its answers would teach something else. Give a teacher that was trained on the same classes."
            )


def teacher_of_file(
    path: Path,
    space: str,
    options: Mapping[str, Any],
    context: TrainingContext,
    *,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[Teacher, State]:
    """Return a float network from a file of weights in torchvision's layout as a teacher, and what names it.

    Args:
        path: a ``.safetensors`` file, or a ``.pth`` one that holds tensors alone.
        space: whose largest network it is; the published one, where the space is elastic only by option.
        options: of the space.
        context: of the training that it teaches.
        image_size: at which it takes images; the run's own by default.
        mean, std: of each channel, as fractions of 255; ImageNet's by default.

    Raises:
        ConfigError: the file is no such network with the run's classes, or images cannot be normalised for it.
    """
    path = Path(context.recorded.get("path", path.absolute()))
    data = context.data
    takes = _normalisation(data.channels, mean, std)
    with _as_teacher(path):
        tensors = read_tensors(path)
    if any(name.startswith(OWN) for name in tensors):
        raise ConfigError(
            f"The teacher's weights {path} are a checkpoint of a run, which does not say how its images were "
            "normalised. Give the run's directory as the teacher, without a space."
        )
    cls = context.registry.load("space", MODULE_SPACE if space.startswith(f"{MODULE_SPACE}:") else space)
    published = {"elastic": False} if "elastic" in inspect.signature(cls).parameters else {}
    config = load_config({"compile": False, "space": {"name": space, "options": {**published, **options}}})
    sized = _Sized(data, image_size or data.image_size)
    built = components.build_space(context.registry, config, sized)  # type: ignore[arg-type]
    supernet = components.build_supernet(context.registry, config, built, data)
    with _as_teacher(path):
        report = load_initial_weights(supernet, path)
    if not report.whole:
        raise ConfigError(
            f"The teacher's weights {path} are not all of the largest network of space {space!r} with "
            f"{data.num_classes} classes: {report.summary()}{_narrow(report)}. Correct space and its options (such as "
            "width), or give another file."
        )
    supernet.set_mode("float")
    subnet = supernet.eval().extract(built.highest()).fold()
    named = {"path": str(path), "sha256": file_digest(path)}
    return Teacher(subnet, context.device, data.pixels, takes), named


@contextmanager
def _as_teacher(path: Path) -> Iterator[None]:
    """Let what is said of initial weights speak of the teacher."""
    try:
        yield
    except ConfigError as error:
        said = str(error).replace("initial weights", "teacher's weights")
        said = said.replace("--init", "train.supervision_options")
        raise ConfigError(said) from error


def _narrow(report: InitReport) -> str:
    """Say that the space has more channels than the file, where it does."""
    return f"; the space has more channels at {report.prefixes[0]}" if report.prefixes else ""


@dataclass(frozen=True)
class _Sized:
    """What a space is told of the images, at the teacher's own size."""

    data: Data
    image_size: int

    @property
    def num_classes(self) -> int:
        return self.data.num_classes

    @property
    def channels(self) -> int:
        return self.data.channels


def _normalisation(channels: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> ChannelGrid:
    """Return how images are normalised for a network from a file."""
    known = channels == len(IMAGENET_MEAN)
    found = ChannelGrid(
        tuple(mean if mean is not None else IMAGENET_MEAN if known else ()),
        tuple(std if std is not None else IMAGENET_STD if known else ()),
    )
    if len(found.mean) != channels or len(found.std) != channels or min(found.std, default=0.0) <= 0:
        raise ConfigError(
            f"The teacher's mean and std must be {channels} number(s) each, of the channels from 0 to 1, std over 0; "
            f"given: {list(found.mean)} and {list(found.std)}. Give --supervision-option mean=... and std=... as its "
            "training had them."
        )
    return found


def check_path(path: Path) -> None:
    """Raise ``StoreError`` where a teacher is not there at all."""
    if not path.exists():
        raise StoreError(
            f"The teacher {path} does not exist. Give the directory of a finished run, or a file of weights with its "
            "space, by --supervision-option teacher=PATH."
        )
