"""Numbers as people read them."""

from __future__ import annotations

from typing import Any

from qnas.report.data import LABELS

MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_IEC = ((1024.0**3, "GiB"), (1024.0**2, "MiB"), (1024.0, "KiB"))


def label(metric: str) -> str:
    """Return the name under which a metric is shown."""
    return LABELS.get(metric, metric)


def heading(metric: str) -> str:
    """Return a metric's name at the head of a column; names that plugins give stay as they are."""
    shown = label(metric)
    return shown[0].upper() + shown[1:] if metric in LABELS else shown


def count(value: float | None) -> str:
    """Return a count with three digits: ``65.9 M``."""
    if value is None:
        return MISSING
    for scale, unit in _SI:
        if abs(value) >= 0.9995 * scale:  # 999,900 is 1.00 M, not 1000 k
            return f"{_three(value / scale)} {unit}"
    return f"{value:g}" if float(value).is_integer() else f"{value:.4g}"


def size(value: float | None) -> str:
    """Return a number of bytes: ``265 KiB``."""
    if value is None:
        return MISSING
    for scale, unit in _IEC:
        if abs(value) >= 0.9995 * scale:
            return f"{_three(value / scale)} {unit}"
    return f"{value:g} B"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction in percent: ``97.2%``."""
    return MISSING if value is None else f"{100 * value:.{digits}f}%"


def percent_error(value: float | None, error: float | None) -> str:
    """Return a fraction and its standard error in percent: ``97.2 ± 0.9%``."""
    if value is None or error is None:
        return percent(value)
    return f"{100 * value:.1f} ± {100 * error:.1f}%"


def seconds(value: float) -> str:
    """Return a duration: ``1 h 02 min``, ``3 min 05 s`` or ``12.3 s``."""
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def metric(name: str, value: Any, score: str) -> str:
    """Return a metric's value with the unit that its name tells; ``score`` names the task's metric, a fraction."""
    if not isinstance(value, (int, float)):
        return MISSING if value is None else str(value)
    if name == score or "accuracy" in name:
        return percent(value)
    if name.endswith("bytes"):
        return size(value)
    return f"{value:.4g} ms" if name.endswith("_ms") else count(value)


def bits(value: Any) -> str:
    """Return a bit-width; 32 stands for float."""
    return "float" if value == 32 else str(value)


def many(number: int, thing: str) -> str:
    """Return a count of things: ``1 point``, ``2 points``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def p_value(value: float) -> str:
    """Return a p-value: ``p = 0.041`` or ``p < 0.001``."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _three(value: float) -> str:
    """Return a number with three significant digits and no exponent."""
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}"
