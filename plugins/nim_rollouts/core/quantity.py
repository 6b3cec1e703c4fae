"""Kubernetes quantities ("500m", "50Gi", "1e3") as exact numbers."""

from __future__ import annotations

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
