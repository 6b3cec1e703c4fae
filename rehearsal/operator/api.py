"""Names that the operator and its objects share, and the errors a reconcile may end with."""

from __future__ import annotations

import os
from typing import Any

Obj = dict[str, Any]

GROUP_VERSION = "apps.nvidia.com/v1alpha1"
OPERATOR = "k8s-nim-operator"
MANAGED_BY = "app.kubernetes.io/managed-by"
FIELD_MANAGER = "manager"
"""The real manager's binary is called `manager`, and that is what its writes are marked with."""

CACHE_FINALIZER = "finalizer.nimcache.apps.nvidia.com"
SERVICE_FINALIZER = "finalizer.nimservice.apps.nvidia.com"
PIPELINE_FINALIZER = "finalizer.nimpipeline.apps.nvidia.com"
PARENT_HASH = "nvidia.com/parent-spec-hash"
APPLIED_HASH = "nvidia.com/last-applied-hash"
SELECTED_PROFILES = "nvidia.com/selected-profiles"
REQUIRED_SCC = "openshift.io/required-scc"

DEFAULT_PORT = 8000
DEFAULT_USER, DEFAULT_GROUP = 1000, 2000


def operator_version() -> str:
    """The version that children are labelled with."""
    return os.environ.get("OPERATOR_VERSION", "v3.1.2")


class ReconcileError(Exception):
    """A reconcile failed; the text becomes the object's condition, and the reconcile is repeated with back-off."""


class Panic(Exception):
    """What is a nil dereference in the real operator: recovered, repeated with back-off, no status is ever written."""


def owner_reference(owner: Obj) -> Obj:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def controller_of(obj: Obj) -> Obj | None:
    """The reference to the object's controlling owner."""
    return next((ref for ref in obj["metadata"].get("ownerReferences") or [] if ref.get("controller")), None)
