"""What k-fold selection found, read from files and in words. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qnas.errors import StoreError

PREFIX = "kfold-"


def file_name(k: int) -> str:
    """Return the name of the file of ``k`` folds, in the folder of their search."""
    return f"{PREFIX}{k}.json"


def read_kfolds(run: Path) -> list[dict[str, Any]]:
    """Return every finished k-fold selection of a run, by search and number of folds.

    Raises:
        StoreError: a file is damaged.
    """
    found = []
    for path in (run / "searches").glob(f"*/{PREFIX}*.json"):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if value["summary"]:
                found.append((int(value["search"].split("-")[0]), value["k"], value))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} is damaged: {error!r}. Delete it; `qnas search {run} --kfold K` makes it anew."
            ) from error
    return [value for _, _, value in sorted(found, key=lambda entry: entry[:2])]


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Return what was estimated, and what it does not say."""
    k, summary, metric = found["k"], found["summary"], found["metric"]
    mean, optimism = summary["mean"], summary["optimism"]
    without = k - summary["folds"]
    none = f" ({without} of {k} folds hold no net that meets the constraints)" if without else ""
    if mean["value"] is None:
        return [f"{k}-fold selection: no fold holds a net that meets the constraints."]
    sizes = [fold["images"] for fold in found["folds"]]
    images = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    estimate = (
        f"{k}-fold selection: a net chosen on {images} of the {found['images']} images of the search split has "
        f"{metric} {_percent(mean)} on the others{none}; on its own fold it looked {_points(optimism)} points better."
    )
    meaning = (
        "This estimates what such a choice is worth on images that had no part in it. The front was chosen on all of "
        "the search split, so its own numbers there are not held out; the folds share test images, so the interval "
        "is rather too narrow."
    )
    return [estimate, meaning]


def _percent(value: Mapping[str, Any]) -> str:
    if value["low"] is None:
        return f"{value['value']:.2%}"
    return f"{value['value']:.2%} (95% {value['low']:.2%} to {value['high']:.2%}, deviation {value['std']:.2%})"


def _points(value: Mapping[str, Any]) -> str:
    if value["low"] is None:
        return f"{100 * value['value']:.2f}"
    return f"{100 * value['value']:.2f} (95% {100 * value['low']:.2f} to {100 * value['high']:.2f})"


def of_front(kfolds: Sequence[Mapping[str, Any]], front: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return those that belong to the search of a front."""
    return [found for found in kfolds if found["search"] == front.get("search")]
