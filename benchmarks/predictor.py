"""The predictor mlp on encoded samples, one thread: at least 50,000 samples a second.

Space resnet20 with 2 to 8 bits by layer (259 columns), seven layers, 150 wide; the encoding by itself beside it. CPU
seconds of the one thread, the median of five rounds.

python benchmarks/predictor.py [--quick]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import arguments, write

from qnas.plugins import load_registry
from qnas.rng import generator
from qnas.space import QuantScheme

LIMIT = 50_000


def seconds(function: Callable[[], Any]) -> float:
    """Return the median of five rounds."""
    times = []
    for _ in range(5):
        start = time.thread_time()
        function()
        times.append(time.thread_time() - start)
    return statistics.median(times)


def main() -> None:
    args = arguments(__doc__ or "")
    torch.set_num_threads(1)
    registry = load_registry()
    bits = tuple(range(2, 9))
    scheme = QuantScheme(bits, bits, "layer")
    space = registry.load("space", "resnet20")(scheme, image_size=32, num_classes=10, elastic=False)
    n = 5_000 if args.quick else 100_000
    rows = space.draw(generator(0, "predictor"), n)
    encoded = space.encode(rows)
    predictor = registry.load("predictor", "mlp")(epochs=1)
    predictor.fit(encoded[:256], np.linspace(0, 1, 256))
    result = {
        "columns": encoded.shape[1],
        "samples_a_second": round(n / seconds(lambda: predictor.predict(encoded))),
        "encoded_a_second": round(n / seconds(lambda: space.encode(rows))),
    }
    write("predictor", {"limit": LIMIT, **result}, args.out)


if __name__ == "__main__":
    main()
