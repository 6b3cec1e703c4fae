"""Kubernetes quantities in the canonical form in which Go writes them back (`1024Mi` becomes `1Gi`, 0.5 becomes
`500m`)."""

from __future__ import annotations

import re
from decimal import Decimal

_TEXT = re.compile(r"^([+-]?[0-9.]+)(?:([eE][+-]?[0-9]+)|([numkMGTPE]|[KMGTPE]i)?)$")
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def parse(value: object) -> tuple[Decimal, str]:
    """The amount, and its family: "binary", "exponent" or "decimal". Raises ValueError."""
    match = _TEXT.match(str(value))
    if not match:
        raise ValueError(f"not a quantity: {value!r}")
    number, exponent, suffix = Decimal(match[1]), match[2], match[3] or ""
    if exponent:
        return number * Decimal(10) ** int(exponent[1:]), "exponent"
    if suffix in _BINARY:
        return number * 1024 ** _BINARY[suffix], "binary"
    return number * Decimal(10) ** _DECIMAL[suffix], "decimal"


def canonical(value: object) -> str:
    """The quantity as Kubernetes prints it: the largest suffix of its family that leaves a whole number."""
    amount, family = parse(value)
    if amount == 0:
        return "0"
    if family == "binary" and amount == amount.to_integral_value() and abs(amount) >= 1024:
        for suffix, power in reversed(_BINARY.items()):
            if amount % 1024**power == 0:
                return f"{int(amount / 1024**power)}{suffix}"
        return str(int(amount))
    for suffix, power in reversed(_DECIMAL.items()):
        scaled = amount / Decimal(10) ** power
        if scaled == scaled.to_integral_value():
            if family == "exponent":
                return f"{int(scaled)}" + (f"e{power}" if power else "")
            return f"{int(scaled)}{suffix}"
    return f"{int((amount * 10**9).to_integral_value(rounding='ROUND_CEILING'))}n"
