"""Which layer a reason slug belongs to, and what to do about it. Data; docs/errors.md tells the same to people."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Layer(StrEnum):
    """Where a rollout can hang. The values are what logs and records show."""

    QUOTA = "quota"
    CAPACITY = "capacity"
    SCHEDULING = "scheduling"
    IMAGE_PULL = "image-pull"
    NGC_AUTH = "ngc-auth"
    ENTITLEMENT = "entitlement"
    RATE_LIMIT = "rate-limit"
    VOLUME = "volume"
    PROFILE = "profile"
    MEMORY = "memory"
    PROBE_BUDGET = "probe-budget"
    MODEL_ENDPOINT = "model-endpoint"
    OPERATOR = "operator"
    API_SERVER = "api-server"
    NETWORK = "network"


@dataclass(frozen=True)
class Remedy:
    """The layer of a slug where nothing says otherwise, and what to do, one sentence without a full stop."""

    layer: Layer
    do: str


_OPERATOR_LOG = "look at the log of the NIM operator's pod, and whether it runs at all"
_POD_LOG = "look at the pod's log: kubectl logs --previous"

#: Of the layers that evidence can lead to, where it says more than the slug.
OF_LAYER: dict[Layer, str] = {
    Layer.QUOTA: "ask for a larger quota (AWS vCPUs of the instance family, or the namespace's ResourceQuota)",
    Layer.CAPACITY: "allow more instance types and zones in the node pool, or wait until the cloud has capacity again",
    Layer.SCHEDULING: "compare nodeSelector, tolerations and resources of the deployment with the nodes that there are",
    Layer.IMAGE_PULL: "check the image's repository and tag in the NGC catalogue",
    Layer.NGC_AUTH: "put a valid NGC key into the environment's connection and clear apply_secrets and what follows",
    Layer.ENTITLEMENT: "accept the model's licence, subscribe, or give the key the scope for this repository at NGC",
    Layer.RATE_LIMIT: "wait for the registry's limit to pass; the nodes keep trying by themselves",
    Layer.VOLUME: "look at the claim's and the pod's events, the file system's policy and its mount targets",
    Layer.PROFILE: "choose engine, precision and GPUs of a profile that the image lists",
    Layer.MEMORY: "raise the memory limit, or choose a profile with more GPUs or a lower precision",
    Layer.PROBE_BUDGET: "give the start-up more time (budgets.service_s), or a profile that loads faster",
    Layer.MODEL_ENDPOINT: "ask /v1/models of a pod and look at the pod's log",
    Layer.OPERATOR: _OPERATOR_LOG,
    Layer.API_SERVER: "look at the control plane: the wait goes on as soon as it answers",
    Layer.NETWORK: "check the route from the nodes to the registry: NAT gateway, DNS, proxy",
}

REMEDIES: dict[str, Remedy] = {
    # what pods met
    "quota-exceeded": Remedy(Layer.QUOTA, "raise the namespace's ResourceQuota, or free what uses it up"),
    "pods-refused": Remedy(Layer.SCHEDULING, "the API server's words say which admission refuses the pods: allow them"),
    "unschedulable-gpu": Remedy(Layer.CAPACITY, OF_LAYER[Layer.CAPACITY]),
    "unschedulable": Remedy(Layer.SCHEDULING, OF_LAYER[Layer.SCHEDULING]),
    "image-pull-unauthorized": Remedy(Layer.NGC_AUTH, OF_LAYER[Layer.NGC_AUTH]),
    "image-pull-not-found": Remedy(Layer.IMAGE_PULL, OF_LAYER[Layer.IMAGE_PULL]),
    "image-pull-rate-limited": Remedy(Layer.RATE_LIMIT, OF_LAYER[Layer.RATE_LIMIT]),
    "image-pull-failing": Remedy(Layer.IMAGE_PULL, "look at the pod's events for the registry's words"),
    "container-config": Remedy(Layer.OPERATOR, "the message names what is missing: make it, or clear apply_secrets"),
    "pod-network-failing": Remedy(
        Layer.NETWORK, "look at the node's network plug-in and the free addresses of its subnet"
    ),
    "crash-loop": Remedy(Layer.MODEL_ENDPOINT, _POD_LOG),
    "crash-loop-oom": Remedy(Layer.MEMORY, OF_LAYER[Layer.MEMORY]),
    "startup-probe-failing": Remedy(Layer.PROBE_BUDGET, OF_LAYER[Layer.PROBE_BUDGET]),
    # volumes
    "volume-unbound": Remedy(Layer.VOLUME, "look at the claim's events; the storage driver's words say what it lacks"),
    "volume-terminating": Remedy(Layer.VOLUME, "delete the NIMService whose pod still mounts the old claim"),
    "volume-mount-failing": Remedy(Layer.VOLUME, "check mount targets, security groups and the file system's policy"),
    "volume-lost": Remedy(Layer.VOLUME, "delete the NIMCache and its claim, then clear apply_cache to fill it again"),
    "claim-pending": Remedy(Layer.VOLUME, "look whether the storage driver runs and the StorageClass exists"),
    # caches and Jobs
    "no-matching-profile": Remedy(Layer.PROFILE, OF_LAYER[Layer.PROFILE]),
    "job-exhausted": Remedy(Layer.OPERATOR, "read the last pod's log lines; clear apply_cache to download again"),
    "job-failed": Remedy(Layer.OPERATOR, "read the last pod's log lines"),
    "job-deadline-exceeded": Remedy(Layer.MODEL_ENDPOINT, "the Job took longer than it may: give it more time"),
    "job-retrying": Remedy(Layer.OPERATOR, "read the failed pods' log lines"),
    "cache-downloading": Remedy(Layer.NETWORK, "give the download more time (budgets.cache_s), or a faster way out"),
    "cache-preparing": Remedy(Layer.OPERATOR, _OPERATOR_LOG),
    "selection-pod-ended": Remedy(Layer.OPERATOR, "read that pod's log and delete it: the operator makes it anew"),
    "job-suspended": Remedy(
        Layer.OPERATOR, "a wait that gave up stopped the download: clear apply_cache, which resumes it"
    ),
    "job-pending": Remedy(Layer.SCHEDULING, "look at the events of the Job and of its pod"),
    "job-running": Remedy(Layer.MODEL_ENDPOINT, "the Job runs longer than its budget: look at its pod's log"),
    # services
    "cache-missing": Remedy(Layer.OPERATOR, "apply the NIMCache that the service names: clear apply_cache"),
    "cache-not-ready": Remedy(Layer.OPERATOR, "look why the NIMCache is not ready: clear wait_cache"),
    "rollout-in-progress": Remedy(Layer.OPERATOR, _OPERATOR_LOG),
    "stale-ready": Remedy(Layer.OPERATOR, _OPERATOR_LOG),
    "model-endpoint-unavailable": Remedy(Layer.MODEL_ENDPOINT, OF_LAYER[Layer.MODEL_ENDPOINT]),
    "update-not-propagated": Remedy(Layer.OPERATOR, "change the child itself, or delete it so that it is made anew"),
    "service-not-owned": Remedy(Layer.OPERATOR, "delete or rename the NIMService that is in the pipeline's way"),
    "operator-unavailable": Remedy(
        Layer.OPERATOR, "look at the operator's pod, its log and its events: nothing moves without it"
    ),
    "reconcile-failed": Remedy(Layer.OPERATOR, "the operator's own words say what it lacks"),
    # anything
    "deleting": Remedy(Layer.OPERATOR, _OPERATOR_LOG),
    "finalizer-stuck": Remedy(
        Layer.OPERATOR,
        "let its controller run again (install it anew if it is gone) and clear this task: it removes the finalizer"
        " itself; only where that cannot be, clear approve_finalizers and what follows, which asks before it goes",
    ),
    "not-deleted": Remedy(Layer.OPERATOR, "clear the task that should have deleted it"),
    "children-terminating": Remedy(Layer.OPERATOR, "look at the finalizers of what is named"),
    "deleted": Remedy(Layer.OPERATOR, "somebody deleted it meanwhile: clear the task that applies it"),
    "node-pool-not-ready": Remedy(
        Layer.CAPACITY, "look at the conditions of the EC2NodeClass and at Karpenter's log: tags, role, subnets"
    ),
    "crd-not-established": Remedy(Layer.API_SERVER, "look at the conditions of the CustomResourceDefinition"),
    "crd-names-conflict": Remedy(Layer.API_SERVER, "remove the other CRD that has the same names"),
    "cluster-unavailable": Remedy(Layer.API_SERVER, OF_LAYER[Layer.API_SERVER]),
}


def remedy_of(reason: str) -> Remedy:
    """What is known of a slug; of an unknown one, that the operator should be looked at."""
    return REMEDIES.get(reason) or Remedy(Layer.OPERATOR, _OPERATOR_LOG)
