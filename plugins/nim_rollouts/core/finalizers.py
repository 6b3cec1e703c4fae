"""Finalizers: who has to let go of what, and what hangs because that one is not there. Pure.

A finalizer is a promise of a controller to clean something up before its object disappears. Without the controller the
object stays for ever, and taking the finalizer away by hand breaks the promise: so here it is only found out and told.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nim_rollouts.core.verdicts.model import Blocker, Object, State, Verdict


@dataclass(frozen=True)
class Keeper:
    """A controller that puts finalizers on objects.

    :param name: for a person
    :param definition: a CRD that comes with it: the add-on that requires it is the controller
    :param promise: what it does before it lets go, and nobody does in its place
    """

    name: str
    definition: str
    promise: str


_NIM = "the NIM operator"
_CACHES, _SERVICES = "nimcaches.apps.nvidia.com", "nimservices.apps.nvidia.com"
_KARPENTER, _POOLS = "Karpenter", "nodepools.karpenter.sh"
_BY_GARBAGE = "nothing more: Kubernetes' own garbage collection removes what it owned"

#: Of controllers that come as an add-on. Kubernetes' own (volumes' protection, say) are always there.
KEEPERS: dict[str, Keeper] = {
    "finalizer.nimcache.apps.nvidia.com": Keeper(_NIM, _CACHES, "ends the pods of a download that still runs"),
    "finalizer.nimservice.apps.nvidia.com": Keeper(_NIM, _SERVICES, _BY_GARBAGE),
    "finalizer.nimpipeline.apps.nvidia.com": Keeper(_NIM, "nimpipelines.apps.nvidia.com", _BY_GARBAGE),
    "karpenter.sh/termination": Keeper(
        _KARPENTER, _POOLS, "drains the node and ends its EC2 instance, which goes on and is paid for without it"
    ),
    "karpenter.k8s.aws/termination": Keeper(
        _KARPENTER, _POOLS, "removes the IAM instance profile that it made, which stays without it"
    ),
}


@dataclass(frozen=True)
class Held:
    """A finalizer that nobody will remove, on one very object."""

    kind: str
    name: str
    namespace: str | None
    uid: str
    finalizer: str

    @property
    def keeper(self) -> Keeper:
        """Whose it is."""
        return KEEPERS[self.finalizer]

    @property
    def text(self) -> str:
        """For a person."""
        return f"{self.kind}/{self.name}" + (f" in {self.namespace}" if self.namespace else "") + f": {self.finalizer}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def definitions_of(objects: Iterable[Object]) -> set[str]:
    """The CRDs that come with the controllers of these objects' finalizers."""
    return {KEEPERS[one].definition for obj in objects for one in _finalizers(obj) if one in KEEPERS}


def held(objects: Iterable[Object], absent: Collection[str]) -> list[Held]:
    """Every finalizer whose controller is not there.

    :param absent: CRDs of the controllers that are not
    """
    return [
        Held(obj["kind"], _meta(obj)["name"], _meta(obj).get("namespace"), _meta(obj)["uid"], finalizer)
        for obj in objects
        for finalizer in _finalizers(obj)
        if finalizer in KEEPERS and KEEPERS[finalizer].definition in absent
    ]


def checksum(stuck: Sequence[Held], run_id: str) -> str:
    """Names exactly these finalizers on exactly these objects, asked about in one run. 64 hex digits."""
    listed = sorted((one.uid, one.finalizer) for one in stuck)
    return hashlib.sha256(json.dumps([run_id, listed]).encode()).hexdigest()


def question_text(stuck: Sequence[Held], environment: str, asker: str) -> tuple[str, str]:
    """Subject and body (Markdown) of the question whether these may be removed."""
    keepers = sorted({one.keeper.name for one in stuck})
    rows = [
        f"| {one.kind} | `{one.name}` | {one.namespace or ''} | `{one.finalizer}` | {one.keeper.name} | `{one.uid}` |"
        for one in stuck
    ]
    promises = [f"- `{name}`: {KEEPERS[name].promise}." for name in sorted({one.finalizer for one in stuck})]
    parts = [
        f"**{asker}** takes down environment `{environment}`. These objects are to go, and each waits for a controller"
        f" that is **not there**: {', '.join(keepers)}.",
        "\n".join(["| kind | name | namespace | finalizer | whose | uid |", "|---|---|---|---|---|---|", *rows]),
        "**Better than yes:** install the controller again (its add-on, of the same version, with Helm or by"
        " `nim_deploy`), answer no, and trigger the teardown again: the controller then removes its finalizers itself,"
        " and nobody is asked.",
        "**Yes** removes exactly these finalizers from exactly these objects. What the controller does before it lets"
        " go is then done by nobody:\n\n" + "\n".join(promises),
        "**No, or no answer in time:** nothing is deleted, nothing is removed.",
    ]
    return f"{environment}: remove {len(stuck)} finalizers that have no controller", "\n\n".join(parts)


def hanging(verdict: Verdict, obj: Object | None, missing: Sequence[str], away: Blocker | None) -> Verdict:
    """The verdict on the disappearance of an object, when its controller is away.

    :param missing: Deployments of the controller that do not exist: it does not come back by itself
    :param away: that it is there, and no pod of it works
    """
    names = [one for one in _finalizers(obj or {}) if one in KEEPERS]
    if verdict.reason != "deleting" or obj is None or not names:
        return verdict
    if missing:
        keeper = KEEPERS[names[0]]
        kept, gone = ", ".join(names), ", ".join(missing)
        message = (
            f"the {obj['kind']} is being deleted and keeps the finalizer {kept}, which {keeper.name} has to remove;"
            f" its Deployment {gone} does not exist"
        )
        evidence = [*verdict.evidence, *(f"Deployment/{name} absent" for name in missing)]
        return Verdict(State.STUCK, "finalizer-stuck", message, evidence)
    if away is None:
        return verdict
    return Verdict(verdict.state, verdict.reason, verdict.message, verdict.evidence, away)


def _meta(obj: Object) -> Mapping[str, Any]:
    found: Mapping[str, Any] = obj.get("metadata") or {}
    return found


def _finalizers(obj: Object) -> list[str]:
    return list(_meta(obj).get("finalizers") or ())
