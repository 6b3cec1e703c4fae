"""Verdicts from objects alone: (objects, what is wanted, now) -> Verdict(state, reason, message, evidence).

One module a kind. They are pure and level-based: the same objects give the same verdict, whatever was seen before, so
that a worker and a trigger agree and a restart loses nothing. `Subject` names a verdict in plain data, for triggers.
A kind to wait for is one module with `KINDS` and `judge`, and one line of `VERDICTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from nim_rollouts.core.verdicts import cache, claim, crd, deployment, gone, job, nodeclass, nodepool, pipeline, service
from nim_rollouts.core.verdicts.model import Blocker, Object, Snapshot, State, Verdict
from nim_rollouts.core.verdicts.service import Desired

__all__ = [
    "VERDICTS",
    "Blocker",
    "Desired",
    "Object",
    "Snapshot",
    "State",
    "Subject",
    "Verdict",
    "cache",
    "claim",
    "crd",
    "deployment",
    "gone",
    "job",
    "nodeclass",
    "nodepool",
    "pipeline",
    "service",
]


class Judge(Protocol):
    """A module of verdicts on one kind, which needs no more than a name."""

    @property
    def KINDS(self) -> tuple[str, ...]: ...  # noqa: N802

    def judge(self, objects: Snapshot, name: str, now: datetime, /) -> Verdict: ...


VERDICTS: dict[str, Judge] = {
    "NIMCache": cache,
    "NIMPipeline": pipeline,
    "Job": job,
    "Deployment": deployment,
    "PersistentVolumeClaim": claim,
    "CustomResourceDefinition": crd,
    "NodePool": nodepool,
    "EC2NodeClass": nodeclass,
}


@dataclass(frozen=True)
class Subject:
    """What is judged, and against what.

    :param kind: NIMService or one of `VERDICTS`; any kind with `absent`
    :param namespace: None for cluster-scoped kinds
    :param image: of a NIMService: repository:tag that must be served
    :param replicas: of a NIMService
    :param absent: True when its disappearance is waited for
    :param uid: with `absent`: of the object that is to go
    """

    kind: str
    name: str
    namespace: str | None = None
    image: str | None = None
    replicas: int = 1
    absent: bool = False
    uid: str | None = None

    @property
    def ref(self) -> str:
        """`Kind/name`"""
        return f"{self.kind}/{self.name}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that a snapshot must hold."""
        if self.absent:
            return gone.kinds(self.kind)
        return service.KINDS if self.kind == "NIMService" else VERDICTS[self.kind].KINDS

    def judge(self, objects: Snapshot, now: datetime) -> Verdict:
        """The verdict. `now` is aware, in UTC."""
        if self.absent:
            return gone.judge(objects, self.kind, self.name, self.uid, now)
        if self.kind == "NIMService":
            if self.image is None:
                raise ValueError(f"{self.ref}: the image to be served must be given")
            return service.judge(objects, Desired(self.name, self.image, self.replicas), now)
        return VERDICTS[self.kind].judge(objects, self.name, now)

    def is_reached(self, verdict: Verdict) -> bool:
        """True when the verdict is what was waited for."""
        if self.absent:
            return verdict.state is State.GONE and verdict.reason == "deleted"
        return verdict.state is State.HEALTHY

    def is_final(self, verdict: Verdict) -> bool:
        """True when waiting longer makes no sense: reached, failed, stuck, or gone while it was to be there."""
        if self.is_reached(verdict) or verdict.state in (State.FAILED, State.STUCK):
            return True
        return verdict.state is State.GONE and not self.absent

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {field: getattr(self, field) for field in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Subject:
        """Back from `to_dict`."""
        return cls(**data)
