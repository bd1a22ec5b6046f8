"""Seconds until ``qnas --help`` and ``qnas plugins`` have answered: under 0.4.

python benchmarks/startup.py [--quick]
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import arguments, write

LIMIT = 0.4


def main() -> None:
    args = arguments(__doc__ or "")
    qnas = shutil.which("qnas", path=str(Path(sys.executable).parent)) or "qnas"
    commands = {"qnas --help": [qnas, "--help"], "qnas plugins": [qnas, "plugins"], "python -c pass":
                [sys.executable, "-c", "pass"]}  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(3 if args.quick else 21):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.perf_counter() - start)
    result = {n: {"median_s": round(statistics.median(t), 3), "best_s": round(min(t), 3)} for n, t in times.items()}
    write("startup", {"limit": LIMIT, "commands": result}, args.out)


if __name__ == "__main__":
    main()
