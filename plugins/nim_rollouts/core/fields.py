"""Field types that several models share: names that Kubernetes accepts, image parts, quantities."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from nim_rollouts.core.quantity import parse_quantity

# A deployment's name is the stem of everything. The longest thing made of it is the operator's
# `<deployment>-<hash8>-manifest` (18 more); a Job's pods and a Deployment's pods add up to 26. 40 keeps every object
# name and label value inside the 63 characters of a DNS label (a pod's host name may be cut, which is harmless).
MAX_DEPLOYMENT_NAME = 40


class Strict(BaseModel):
    """Unknown keys refused, no value converted in silence, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)


def _dns_1035(text: str) -> str:
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", text) or len(text) > 63:
        raise ValueError(
            f'"{text}" is not a name that Kubernetes accepts for a Service: use small letters, digits and "-", '
            "begin with a letter, do not end with -"
        )
    return text


def _deployment_name(text: str) -> str:
    _dns_1035(text)
    if len(text) > MAX_DEPLOYMENT_NAME:
        raise ValueError(
            f'"{text}" has {len(text)} characters; use at most {MAX_DEPLOYMENT_NAME}, '
            "so that the names made of it fit into 63"
        )
    return text


def _dns_1123_label(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", text) or len(text) > 63:
        raise ValueError(
            f'"{text}" is not a name that Kubernetes accepts: use at most 63 small letters, digits and "-"'
        )
    return text


def _dns_1123_subdomain(text: str) -> str:
    label = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    if not re.fullmatch(rf"{label}(\.{label})*", text) or len(text) > 253:
        raise ValueError(f'"{text}" is not a name that Kubernetes accepts: use small letters, digits, "-" and "."')
    return text


def _repository(text: str) -> str:
    part = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
    host = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::\d+)?"
    if not re.fullmatch(rf"{host}(?:/{part})+", text) or not re.search(r"[.:]|^localhost", text.split("/", 1)[0]):
        raise ValueError(f'"{text}" is not an image repository with its registry, such as nvcr.io/nim/meta/model')
    return text


def _tag(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", text):
        raise ValueError(f'"{text}" is not an image tag: use letters, digits, ".", "_" and "-"')
    return text


def _quantity(text: str) -> str:
    if parse_quantity(text) < 0:
        raise ValueError(f'"{text}" is negative')
    return text


def _number_as_text(value: Any) -> Any:
    # `cpu: 40` is what everybody writes; the API server takes numbers too, but stores text.
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _label_key(text: str) -> str:
    prefix, slash, name = text.rpartition("/")
    if slash:
        _dns_1123_subdomain(prefix)
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", name):
        raise ValueError(
            f'"{text}" is not a label\'s key that Kubernetes accepts, such as "accelerator" or "a.com/key"'
        )
    return text


def _label_value(text: str) -> str:
    if text and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", text):
        raise ValueError(
            f'"{text}" is not a value that Kubernetes accepts for a label: use up to 63 letters, digits, "-", "_", "."'
        )
    return text


def _env_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError(f'"{text}" is not a name for an environment variable')
    return text


DeploymentName = Annotated[str, AfterValidator(_deployment_name)]
ServiceName = Annotated[str, AfterValidator(_dns_1035)]
LabelName = Annotated[str, AfterValidator(_dns_1123_label)]
ObjectName = Annotated[str, AfterValidator(_dns_1123_subdomain)]
Repository = Annotated[str, AfterValidator(_repository)]
Tag = Annotated[str, AfterValidator(_tag)]
Quantity = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_quantity)]
LabelKey = Annotated[str, AfterValidator(_label_key)]
LabelValue = Annotated[str, AfterValidator(_label_value)]
EnvName = Annotated[str, AfterValidator(_env_name)]
