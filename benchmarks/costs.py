"""Costs of many samples through the vectorised table: at least 10,000 samples a second.

python benchmarks/costs.py [--quick]
"""

from __future__ import annotations

import time

from common import arguments, write

from qnas.costs import CostTable, sample_costs
from qnas.plugins import load_registry
from qnas.rng import generator
from qnas.space import QuantScheme

LIMIT = 10_000


def main() -> None:
    args = arguments(__doc__ or "")
    registry = load_registry()
    models = {name: registry.load("cost", name) for name in ("macs", "bitops", "size_bytes")}
    n = 5_000 if args.quick else 100_000
    result = {}
    for size, image in (("small", 16), ("large", 224)):
        scheme = QuantScheme((2, 3, 4), (2, 3, 4), "layer")
        space = registry.load("space", "mbv3")(scheme, image_size=image, num_classes=1000, size=size)
        start = time.perf_counter()
        table = CostTable(space, models)
        described = time.perf_counter() - start
        rows = space.draw(generator(0, "costs"), n)
        start = time.perf_counter()
        for first in range(0, n, 5_000):
            table.costs(rows[first : first + 5_000])
        vectorised = time.perf_counter() - start
        start = time.perf_counter()
        for row in rows[:200]:
            sample_costs(space, models, space.sample(row))
        single = time.perf_counter() - start
        result[f"mbv3 {size}, bits by layer"] = {
            "knobs": len(space.knobs),
            "table_seconds": round(described, 3),
            "samples_a_second": round(n / vectorised),
            "samples_a_second_one_by_one": round(200 / single),
        }
    write("costs", {"limit": LIMIT, "cases": result}, args.out)


if __name__ == "__main__":
    main()
