"""Karpenter's requirements on nodes' labels: what is known of a type's labels, and whether they meet one. Pure."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nim_rollouts.core.instances import Instance

Requirement = Mapping[str, Any]

AWS = "karpenter.k8s.aws/instance-"
TYPE, FAMILY = "node.kubernetes.io/instance-type", f"{AWS}family"
SIZE, CATEGORY = f"{AWS}size", f"{AWS}category"
# Gte and Lte since Karpenter 1.9.
_NUMERIC = {"Gt": operator.gt, "Gte": operator.ge, "Lt": operator.lt, "Lte": operator.le}
_OPERATORS = {"In", "NotIn", "Exists", "DoesNotExist", *_NUMERIC}


def type_labels(one: Instance) -> dict[str, str | None]:
    """The labels that Karpenter gives to nodes of a type; None for one that such nodes lack."""
    gpus = bool(one.gpus)
    return {
        **name_labels(one.name),
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux",
        f"{AWS}cpu": str(one.cpus),
        f"{AWS}memory": str(int(one.memory_gib * 1024)),
        f"{AWS}gpu-count": str(one.gpus) if gpus else None,
        f"{AWS}gpu-name": (one.gpu_product or "").lower() if gpus else None,
        f"{AWS}gpu-manufacturer": "nvidia" if gpus else None,
        f"{AWS}gpu-memory": str(one.gpu_memory_gib * 1024) if gpus else None,
    }


def name_labels(name: str) -> dict[str, str]:
    """Of these labels those that the name of a type, or of a family, tells."""
    family, _, size = name.partition(".")
    parts = re.match(r"([a-z]+)(\d*)", family)
    return {
        TYPE: name if size else "",
        FAMILY: family,
        SIZE: size,
        CATEGORY: parts.group(1) if parts else family,
        f"{AWS}generation": parts.group(2) if parts else "",
    }


def met(key: str, value: str, requirements: Sequence[Requirement]) -> bool:
    """Whether a label of this value meets all requirements on it."""
    return all(holds(value, one) for one in requirements if one.get("key") == key)


def holds(value: str | None, requirement: Requirement) -> bool:
    """One requirement on a value; None: the label is missing. An operator that is not known here is taken as met."""
    how = str(requirement.get("operator"))
    values = [str(one) for one in requirement.get("values") or ()]
    if how not in _OPERATORS:
        return True
    if how in ("NotIn", "DoesNotExist"):
        return value is None or (how == "NotIn" and value not in values)
    if value is None:
        return False
    if how in _NUMERIC:
        try:
            return bool(_NUMERIC[how](int(value), int(values[0])))
        except (ValueError, IndexError):
            return False
    return how == "Exists" or value in values


def strange(requirements: Sequence[Requirement]) -> list[str]:
    """Which requirements have an operator that is not known here, a few words each."""
    return [
        f"its requirement on {one.get('key')} has the operator {one.get('operator')}"
        for one in requirements
        if one.get("operator") not in _OPERATORS
    ]


def listed(key: str, requirements: Sequence[Requirement]) -> list[str] | None:
    """The values to which requirements restrict a label; None where they do not."""
    lists = [
        [str(value) for value in one.get("values") or ()]
        for one in requirements
        if one.get("key") == key and one.get("operator") == "In"
    ]
    return [value for value in lists[0] if all(value in each for each in lists)] if lists else None


def by_name(name: str, requirements: Sequence[Requirement]) -> bool:
    """Whether requirements allow a type or family as far as its name tells."""
    own = {key: value for key, value in name_labels(name).items() if value}
    return all(holds(own[str(one["key"])], one) for one in requirements if str(one.get("key")) in own)
