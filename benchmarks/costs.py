"""Costs of many samples through the vectorised table, for every registered space: at least 100,000 samples a second.

MACs, BitOPs and size together, bit-widths by layer, 1,000 classes; large forms at 224 pixels with every resolution,
small ones at 32. CPU seconds of the one thread, the median of five rounds.

python benchmarks/costs.py [--quick]
"""

from __future__ import annotations

import inspect
import statistics
import time
from typing import Any

from common import arguments, write

from qnas.config import MODULE_SPACE
from qnas.costs import CostTable, sample_costs
from qnas.plugins import Registry, load_registry
from qnas.rng import generator
from qnas.space import QuantScheme, SearchSpace

LIMIT = 100_000
IMAGES = {"small": 32, "large": 224}  # pixels
SINGLE = 200  # samples that are counted one by one


def spaces(registry: Registry) -> dict[str, SearchSpace]:
    """Return every registered space in every size that it has."""
    scheme = QuantScheme((2, 3, 4), (2, 3, 4), "layer")
    found = {}
    for name in registry.names("space"):
        if name == MODULE_SPACE:  # of a user's network
            continue
        cls = registry.load("space", name)
        sizes = IMAGES if "size" in inspect.signature(cls).parameters else {"small": IMAGES["small"]}
        for size, pixels in sizes.items():
            label = f"{name} {size}" if len(sizes) > 1 else name
            options = {"size": size} if len(sizes) > 1 else {}
            found[label] = cls(scheme, image_size=pixels, num_classes=1000, **options)
    return found


def measure(space: SearchSpace, models: dict[str, Any], n: int) -> dict[str, Any]:
    start = time.thread_time()
    table = CostTable(space, models)
    described = time.thread_time() - start
    rows = space.draw(generator(0, "costs"), n)
    times = []
    for _ in range(5):
        start = time.thread_time()
        table.costs(rows)
        times.append(time.thread_time() - start)
    start = time.thread_time()
    for row in rows[:SINGLE]:
        sample_costs(space, models, space.sample(row))
    single = time.thread_time() - start
    return {
        "knobs": len(space.knobs),
        "table_seconds": round(described, 3),
        "samples_a_second": round(n / statistics.median(times)),
        "samples_a_second_one_by_one": round(SINGLE / single),
    }


def main() -> None:
    args = arguments(__doc__ or "")
    registry = load_registry()
    models = {name: registry.load("cost", name) for name in ("macs", "bitops", "size_bytes")}
    n = 5_000 if args.quick else 100_000
    result = {label: measure(space, models, n) for label, space in spaces(registry).items()}
    write("costs", {"limit": LIMIT, "cases": result}, args.out)


if __name__ == "__main__":
    main()
