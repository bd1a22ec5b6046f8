"""Contract suites: what every component of a kind must do. Plugin authors run them on their own components.

Each ``check_*`` function raises ``AssertionError`` with a sentence that says what is expected. They are tried on every
registered component in ``tests/contract``.
"""

from qnas.testing.contracts import (
    check_calibrator,
    check_cost,
    check_dataset,
    check_device,
    check_predictor,
    check_quantizer,
    check_recipe,
    check_sampler,
    check_space,
    check_strategy,
    check_supervision,
    check_task,
)
from qnas.testing.parts import toy_problem, toy_space, toy_supernet

__all__ = [
    "check_calibrator",
    "check_cost",
    "check_dataset",
    "check_device",
    "check_predictor",
    "check_quantizer",
    "check_recipe",
    "check_sampler",
    "check_space",
    "check_strategy",
    "check_supervision",
    "check_task",
    "toy_problem",
    "toy_space",
    "toy_supernet",
]
