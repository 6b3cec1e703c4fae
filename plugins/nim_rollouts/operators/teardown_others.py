"""What others have in the cluster that holds a teardown of the platform up, and what nobody would take down.

Each step refuses what it meets itself, but by then the steps before it have done what cannot be undone: so all of it is
looked at, and told, before the first deletion. Here only what is certainly somebody else's counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from nim_rollouts.core.errors import LeftoversFound
from nim_rollouts.core.verdicts.objects import is_deleting

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Cluster, Object
    from nim_rollouts.core.environment import Addon, Environment

KARPENTER_API = "karpenter.sh/v1"
INGRESS_API = "networking.k8s.io/v1"
_ALB = "ingress.k8s.aws/alb"
_SHOWN = 10

#: What tells that somebody lives in a namespace, though nothing of it may run now.
_INHABITANTS = (
    "Pod", "PersistentVolumeClaim", "Deployment", "StatefulSet", "DaemonSet", "CronJob", "Service",
    "NIMPipeline", "NIMService", "NIMCache",
)  # fmt: skip
#: What may stand between these and whom they belong to.
_BETWEEN = ("ReplicaSet", "Job")


def others(cluster: Cluster, environment: Environment, selector: str, *, whole: bool) -> list[LeftoversFound]:
    """A refusal for each kind of thing, naming them; empty when nobody else is concerned.

    :param selector: labels of what is ours in this environment
    :param whole: the infrastructure goes too, and with it the network
    """
    ours = wanted(selector)
    refusals = [refusal_of_pools(strange_pools(cluster, ours)), refusal_of_forgotten(cluster, environment)]
    for addon in environment.addons:
        there = strange_resources(cluster, addon, ours)
        hint = "Delete them while the operator runs: it has to let go of its finalizers; then trigger again"
        refusals.append(_refusal(f"others need the operator of the add-on {addon.name}", there, hint))
    for namespace in cluster.list("v1", "Namespace", label_selector=selector):
        name = namespace["metadata"]["name"]
        living = [root for _, root in inhabitants(cluster, name) if root is not None and not has(root, ours)]
        refusals.append(refusal_of_namespace(name, living))
    if whole:
        refusals.append(refusal_of_balancers(strange_balancers(cluster, environment.addons, ours)))
    return [one for one in refusals if one is not None]


# --- node pools


def strange_pools(cluster: Cluster, ours: dict[str, str]) -> list[Object]:
    """Somebody else's pools: they would go on launching nodes into a cluster that is being taken down."""
    return [one for one in cluster.list(KARPENTER_API, "NodePool") if not has(one, ours) and not is_deleting(one)]


def refusal_of_pools(pools: list[Object]) -> LeftoversFound | None:
    """Naming them; None when there is none."""
    hint = "Move what runs on them, delete them, then clear this task, or trigger again"
    return _refusal("these node pools are not ours", pools, hint)


# --- custom resources of the add-ons


def strange_resources(cluster: Cluster, addon: Addon, ours: dict[str, str]) -> list[Object]:
    """Custom resources of the add-on's kinds that are neither ours, nor made for what is ours, nor the release's own.
    NodePools are left out: they have a line of their own."""
    from nim_rollouts.clients import helm_crds

    there = helm_crds.resources(cluster, helm_crds.definitions(cluster, addon))
    known = _made_for(there, ours)
    return [
        one
        for one in there
        if one["metadata"]["uid"] not in known
        and one["kind"] != "NodePool"
        and not is_deleting(one)
        and not helm_crds.goes_with(one, addon)
    ]


def _made_for(there: list[Object], ours: dict[str, str]) -> set[str]:
    """The uids of what is ours, of what these own, and so on."""
    known = {one["metadata"]["uid"] for one in there if has(one, ours)}
    while more := {
        one["metadata"]["uid"] for one in there if one["metadata"]["uid"] not in known and known & _owners(one)
    }:
        known |= more
    return known


# --- releases that have left the environment's file


def refusal_of_forgotten(cluster: Cluster, environment: Environment) -> LeftoversFound | None:
    """Naming the releases that this environment has installed and its file has no more: nobody would uninstall them,
    and the end would be told all the same. None when there is none."""
    from nim_rollouts.clients import helm_revisions

    addons = {(one.namespace, one.name) for one in environment.addons}
    left = [place for place in helm_revisions.installed_by(cluster, environment.name) if place not in addons]
    if not left:
        return None
    commands = "; ".join(f"helm uninstall {name} --namespace {namespace}" for namespace, name in left)
    return LeftoversFound(
        f"add-ons that have left the file of environment {environment.name} are still installed: "
        + ", ".join(f"release {name} in {namespace}" for namespace, name in left),
        hint="Put them back into the file, so that they go in order with their definitions, or uninstall them yourself "
        f"({commands}); then clear this task, or trigger again",
    )


# --- who lives in a namespace


def inhabitants(cluster: Cluster, namespace: str) -> Iterator[tuple[Object, Object | None]]:
    """Who lives there, and whom that belongs to in the end: itself, where it has no owner, or None, where its owner is
    of a kind that is not looked at, or has gone. What is on its way out does not count."""
    from nim_rollouts.clients.resources import api_version_of

    listed = {
        kind: cluster.list(api_version_of(kind), kind, namespace) for kind in dict.fromkeys((*_INHABITANTS, *_BETWEEN))
    }
    by_uid = {one["metadata"]["uid"]: one for found in listed.values() for one in found}
    for kind in _INHABITANTS:
        for one in listed[kind]:
            if not is_deleting(one):
                yield one, _root(one, by_uid)


def _root(obj: Object, by_uid: dict[str, Object]) -> Object | None:
    for _ in range(len(by_uid) + 1):
        owners = _owners(obj)
        if not owners:
            return obj
        above = next((by_uid[uid] for uid in sorted(owners) if uid in by_uid), None)
        if above is None:
            return None
        obj = above
    return None  # a circle


def refusal_of_namespace(namespace: str, there: Iterable[Object]) -> LeftoversFound | None:
    """Naming who lives there besides us; None when nobody does."""
    hint = "Move or delete them, then clear this task, or trigger again"
    return _refusal(f"namespace {namespace} is not deleted, others live there", there, hint)


# --- load balancers


def balancer_makers(cluster: Cluster) -> list[Object]:
    """Services and Ingresses for which a controller makes a load balancer, whosever they are."""
    services = [one for one in cluster.list("v1", "Service") if (one.get("spec") or {}).get("type") == "LoadBalancer"]
    return [*services, *_ingresses(cluster)]


def _ingresses(cluster: Cluster) -> list[Object]:
    """Those of the AWS Load Balancer Controller: by their class, or by its mark."""
    classes = {
        one["metadata"]["name"]
        for one in cluster.list(INGRESS_API, "IngressClass")
        if (one.get("spec") or {}).get("controller") == _ALB
    }

    def is_concerned(ingress: Object) -> bool:
        metadata = ingress["metadata"]
        named = (ingress.get("spec") or {}).get("ingressClassName")
        named = named or (metadata.get("annotations") or {}).get("kubernetes.io/ingress.class")
        return named in {*classes, "alb"} or any("ingress.k8s.aws/" in one for one in metadata.get("finalizers") or ())

    return [one for one in cluster.list(INGRESS_API, "Ingress") if is_concerned(one)]


def strange_balancers(cluster: Cluster, addons: Iterable[Addon], ours: dict[str, str]) -> list[Object]:
    """Those of neither us nor an add-on's release, with which they would go."""
    addons = list(addons)
    return [one for one in balancer_makers(cluster) if not has(one, ours) and not is_of_a_release(one, addons)]


def is_of_a_release(obj: Object, addons: Iterable[Addon]) -> bool:
    """True for what one of these releases brought along, and takes away again."""
    from nim_rollouts.clients.helm_crds import is_released

    return any(is_released(obj, addon) for addon in addons)


def refusal_of_balancers(found: list[Object]) -> LeftoversFound | None:
    """Naming them; None when there is none."""
    hint = "Delete those objects while their controller runs, then clear this task, or trigger again"
    return _refusal("these load balancers are not ours, and would hold the network", found, hint)


# --- what they share


def _refusal(what: str, found: Iterable[Object], hint: str) -> LeftoversFound | None:
    names = list(dict.fromkeys(sorted(_text(one) for one in found)))
    if not names:
        return None
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return LeftoversFound(f"{what}: {', '.join(names[:_SHOWN])}{more}", hint=hint)


def _text(obj: Object) -> str:
    namespace = obj["metadata"].get("namespace")
    return f"{obj['kind']}/{obj['metadata']['name']}" + (f" in {namespace}" if namespace else "")


def _owners(obj: Object) -> set[str]:
    return {str(one["uid"]) for one in obj["metadata"].get("ownerReferences") or ()}


def wanted(selector: str) -> dict[str, str]:
    """The labels of a selector of equalities."""
    return dict(one.split("=") for one in selector.split(","))


def has(obj: Object, labels: dict[str, str]) -> bool:
    """True when the object carries all of them."""
    return labels.items() <= (obj["metadata"].get("labels") or {}).items()
