"""Kubernetes quantities ("500m", "50Gi", "1e3") as exact numbers."""

from __future__ import annotations

import math
import re
from fractions import Fraction

_SUFFIX: dict[str, Fraction] = {
    "": Fraction(1),
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    **{unit: Fraction(1000) ** power for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{unit: Fraction(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:[eE]([+-]?\d{1,3})|([A-Za-z]{0,2}))")


def parse_quantity(text: str) -> Fraction:
    """The value in base units (cores, bytes, devices).

    :raises ValueError: not a quantity
    """
    match = _QUANTITY.fullmatch(text.strip())
    suffix = (match.group(3) or "") if match else None
    if match is None or suffix not in _SUFFIX:
        raise ValueError(f'"{text}" is not a Kubernetes quantity such as "4", "500m" or "50Gi"')
    value = Fraction(match.group(1)) * _SUFFIX[suffix]
    return value * Fraction(10) ** int(match.group(2)) if match.group(2) else value


def canonical_quantity(text: str) -> str:
    """The quantity as Go writes it back: `0.5` is `500m`, `1024Mi` is `1Gi`, `1000` is `1k`.

    The API server and the operator store this form. An object that gives another one would differ from what is stored
    for ever, and be written again by each apply.

    :raises ValueError: not a quantity
    """
    value = parse_quantity(text)
    if value == 0:
        return "0"
    if text.strip().endswith("i") and value.denominator == 1 and abs(value) >= 1024:
        for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
            if value % _SUFFIX[suffix] == 0:
                return f"{value / _SUFFIX[suffix]}{suffix}"
        return str(value)
    for power in range(18, -10, -3):
        scaled = value / Fraction(10) ** power
        if scaled.denominator == 1:
            return f"{scaled}{_exponent(text, power)}"
    # Nothing is smaller than a billionth: rounded up, as there.
    return f"{math.ceil(value * 10**9)}{_exponent(text, -9)}"


def _exponent(text: str, power: int) -> str:
    """The suffix in the way in which the text has one: `1e3` stays so."""
    if re.search(r"[eE][+-]?\d", text):
        return f"e{power}" if power else ""
    return {18: "E", 15: "P", 12: "T", 9: "G", 6: "M", 3: "k", 0: "", -3: "m", -6: "u", -9: "n"}[power]
