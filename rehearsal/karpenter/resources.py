"""Kubernetes quantities as exact numbers, and resources in the words of Karpenter's messages."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

Resources = dict[str, Decimal]

ZERO = Decimal(0)
BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def quantity(value: str | int | float) -> Decimal:
    """A Kubernetes quantity as an exact number of its base unit (cores, bytes, pieces). Raises ValueError."""
    text = str(value).strip()
    try:
        if text[-2:] in BINARY:
            return Decimal(text[:-2]) * (1 << BINARY[text[-2:]])
        if text[-1:] in _DECIMAL:
            return Decimal(text[:-1]).scaleb(_DECIMAL[text[-1:]])
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{value!r} is not a Kubernetes quantity") from None


def quantities(values: Mapping[str, str | int | float] | None) -> Resources:
    return {name: quantity(value) for name, value in (values or {}).items()}


def total(a: Mapping[str, Decimal], b: Mapping[str, Decimal]) -> Resources:
    return {name: a.get(name, ZERO) + b.get(name, ZERO) for name in {*a, *b}}


def largest(a: Mapping[str, Decimal], b: Mapping[str, Decimal]) -> Resources:
    return {name: max(a.get(name, ZERO), b.get(name, ZERO)) for name in {*a, *b}}


def as_quantities(resources: Mapping[str, Decimal]) -> dict[str, str]:
    """Back to what an object's field holds."""
    return {name: amount_text(name, amount) for name, amount in sorted(resources.items())}


def describe(resources: Mapping[str, Any]) -> str:
    """Resources as JSON-like text, as Karpenter's messages carry them."""
    parts = []
    for name, value in sorted(resources.items()):
        amount = value if isinstance(value, Decimal) else quantity(value)
        parts.append(f'"{name}":"{amount_text(name, amount)}"')
    return "{" + ",".join(parts) + "}"


def amount_text(name: str, amount: Decimal) -> str:
    """One amount as Kubernetes writes it."""
    if name == "cpu" and amount != amount.to_integral_value():
        return f"{int(amount * 1000)}m"
    if name in ("memory", "ephemeral-storage"):
        for suffix in ("Gi", "Mi", "Ki"):
            whole = amount / (1 << BINARY[suffix])
            if whole == whole.to_integral_value() and whole:
                return f"{int(whole)}{suffix}"
    return f"{int(amount)}" if amount == amount.to_integral_value() else f"{amount.normalize():f}"
