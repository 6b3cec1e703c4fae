"""Why a wait has failed or is stuck: one layer, the evidence, and what to do. Pure: from a verdict and a snapshot.

    verdict + objects + last log lines + budgets -> Diagnosis(layer, reason, evidence, events, log, spent, do)

A verdict's slug names the layer in most cases (`core.layers`). Where one slug can mean several, the words of those
who refuse decide (`core.clues`): a 402 is no 401, a full EC2 quota is no lack of capacity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from nim_rollouts.core import clues
from nim_rollouts.core.errorbase import redact
from nim_rollouts.core.layers import OF_LAYER, Layer, remedy_of
from nim_rollouts.core.spent import Part, spent_on
from nim_rollouts.core.verdicts.cache import selection_pod
from nim_rollouts.core.verdicts.model import Object, Snapshot, State, Verdict
from nim_rollouts.core.verdicts.objects import events_of, find, is_deleting, name_of, owned, selected, status
from nim_rollouts.core.verdicts.pods import provisioner_said, registry_words
from nim_rollouts.core.verdicts.workloads import newest_of

_LINE = 200
# What Karpenter says of its fleets repeats itself for every type and zone; the record has all of it.
_SHOWN_EVENT = 320
_ITS_OWN = ("crash-loop", "startup-probe-failing")
_UNSTARTED = ("rollout-in-progress", "stale-ready", "cache-preparing", "cache-downloading", "job-pending")


@dataclass(frozen=True)
class Diagnosis:
    """The answer to "which layer is stuck".

    :param layer: value of `core.layers.Layer`
    :param reason: the verdict's slug
    :param message: what is wrong, one sentence
    :param evidence: objects and the values on them
    :param events: what core/v1 Events say about them, newest last
    :param log: the last lines of the container at fault, oldest first
    :param spent: how long each part of the budget took, in words; empty when there is no budget
    :param do: what to do
    """

    subject: str
    layer: Layer
    reason: str
    message: str
    do: str
    evidence: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    spent: str = ""

    @property
    def line(self) -> str:
        """All of it in one line, without a secret."""
        parts = [f"layer={self.layer} reason={self.reason}: {self.subject}: {self.message}", *self._shown, self.do]
        return redact(" ".join(". ".join(parts).split()))

    @property
    def sentence(self) -> str:
        """Message and evidence, for an error that has layer, reason and hint besides."""
        return ". ".join([self.message, *self._shown])

    @property
    def _shown(self) -> list[str]:
        shown = [f"evidence: {', '.join(dict.fromkeys(self.evidence))}"] if self.evidence else []
        # An event whose words the message repeats says nothing more.
        said = [one for one in self.events[-1:] if one.partition(": ")[2][-60:] not in self.message]
        shown += [f"event {one if len(one) <= _SHOWN_EVENT else one[:_SHOWN_EVENT] + '...'}" for one in said]
        shown += [f'last log line "{self.log[-1][:_LINE]}"'] if self.log else []
        return shown + ([f"spent: {self.spent}"] if self.spent else [])

    def to_dict(self) -> dict[str, Any]:
        """Facts for the ledger, without a secret."""
        facts = {**asdict(self), "layer": str(self.layer)}
        return {
            name: [redact(one) for one in value] if isinstance(value, list) else redact(value)
            for name, value in facts.items()
        }


@dataclass(frozen=True)
class Answer:
    """The HTTP status that a pod answers on /v1/models."""

    pod: str
    status: int


def diagnose(
    kind: str,
    name: str,
    verdict: Verdict,
    objects: Snapshot,
    now: datetime,
    *,
    log: Sequence[str] = (),
    budget: Sequence[Part] = (),
    nodes: Sequence[str] = (),
    endpoint: Answer | None = None,
) -> Diagnosis:
    """Why a wait ends so.

    :param verdict: failed or stuck (a progressing one counts as overdue)
    :param objects: of the subject's namespace
    :param log: last lines of the container that `log_source` names
    :param budget: the parts of which the deadline is made, in their order
    :param nodes: what the provisioner of nodes says, for pods that fit nowhere
    :param endpoint: what a pod answers on /v1/models, for a service whose operator does not get it
    """
    verdict = verdict.overdue()
    pods = pods_of(objects, kind, name)
    log = [line.strip() for line in log if line.strip()][-10:]
    layer = _layer(kind, verdict, objects, pods, log, nodes)
    evidence = list(verdict.evidence)
    if endpoint is not None:
        evidence.append(f"Pod/{endpoint.pod} GET /v1/models={endpoint.status}")
        # It answers us, so it is the operator that does not ask, or cannot reach it.
        layer = Layer.OPERATOR if endpoint.status == 200 else layer
    remedy = remedy_of(verdict.reason)
    said = clues.of_log(log)
    if said is not None:
        # The line that tells why shall be the one that is shown.
        log = [line for line in log if line != said[1]] + [said[1]]
    return Diagnosis(
        subject=f"{kind}/{name}",
        layer=layer,
        reason=verdict.reason,
        message=verdict.message,
        do=remedy.do if layer is remedy.layer else OF_LAYER[layer],
        evidence=evidence,
        events=[*_events(objects, kind, name, pods), *nodes],
        log=list(log),
        spent=spent_on(pods, budget, now) if verdict.state is State.STUCK else "",
    )


def layer_of(kind: str, name: str, verdict: Verdict, objects: Snapshot) -> Layer:
    """The layer at fault as far as the objects alone tell it: while the wait still goes on."""
    return _layer(kind, verdict.overdue(), objects, pods_of(objects, kind, name), (), ())


def _layer(
    kind: str, verdict: Verdict, objects: Snapshot, pods: list[Object], log: Sequence[str], nodes: Sequence[str]
) -> Layer:
    reason = verdict.reason
    # A Deployment that is waited for by itself is an add-on's: what keeps it from running keeps an operator away.
    layer = Layer.OPERATOR if kind == "Deployment" and reason in _ITS_OWN else remedy_of(reason).layer
    if reason.startswith("image-pull-"):
        return clues.of_pull(_refusal(verdict.message)) or layer
    if reason.startswith("unschedulable"):
        said = [text for pod in pods if (text := provisioner_said(objects, pod))]
        return clues.of_nodes([*said, *nodes]) or layer
    if reason == "container-config":
        return Layer.NGC_AUTH if verdict.message.endswith("not found") and "secret " in verdict.message else layer
    if reason == "reconcile-failed":
        return clues.of_pull(_refusal(verdict.message)) or layer
    if reason in ("crash-loop", "job-exhausted", "job-failed", "job-retrying"):
        if any(_out_of_memory(pod) for pod in pods):
            return Layer.MEMORY
        said_in_log = clues.of_log(log)
        return said_in_log[0] if said_in_log else layer
    if reason in _UNSTARTED:
        step = _unstarted(pods)
        return layer if step is None or (step is Layer.PROBE_BUDGET and kind == "Deployment") else step
    return layer


def _unstarted(pods: list[Object]) -> Layer | None:
    """Nobody has refused anything, and yet it is not there: the step at which the pods are."""
    for pod in pods:
        state = status(pod)
        containers = [*(state.get("initContainerStatuses") or ()), *(state.get("containerStatuses") or ())]
        waiting = [(one.get("state") or {}).get("waiting") or {} for one in containers]
        if any(one.get("reason") in ("ContainerCreating", "PodInitializing") for one in waiting):
            return Layer.IMAGE_PULL
        if state.get("phase") == "Pending" and not (pod.get("spec") or {}).get("nodeName"):
            return Layer.SCHEDULING
        if any(not one.get("ready") and (one.get("state") or {}).get("running") for one in containers) and _serves(pod):
            return Layer.PROBE_BUDGET
    return None


def _serves(pod: Object) -> bool:
    """True for a pod that serves: those of Jobs are never Ready for long."""
    return any(one.get("kind") == "ReplicaSet" for one in pod["metadata"].get("ownerReferences") or ())


def pods_of(objects: Snapshot, kind: str, name: str) -> list[Object]:
    """The pods that work for an object."""
    found: list[Object] = []
    if kind == "NIMService":
        found = _serving(objects, name)
    elif kind == "NIMPipeline":
        pipeline = find(objects, "NIMPipeline", name)
        for one in ((pipeline or {}).get("spec") or {}).get("services") or ():
            found += _serving(objects, str(one.get("name")))
    elif kind == "Deployment":
        deployment = find(objects, "Deployment", name)
        wanted = (((deployment or {}).get("spec") or {}).get("selector") or {}).get("matchLabels") or {}
        found = selected(objects, "Pod", wanted)
        found = newest_of(objects, deployment, found) if deployment else found
    elif kind == "NIMCache":
        cache = find(objects, "NIMCache", name)
        for job in owned(objects, "Job", cache) if cache else []:
            found += owned(objects, "Pod", job)
        selection = selection_pod(objects, cache) if cache else None
        found += [selection] if selection else []
    elif kind == "Job":
        job_object = find(objects, "Job", name)
        found = owned(objects, "Pod", job_object) if job_object else []
    return [pod for pod in found if not is_deleting(pod)]


def _serving(objects: Snapshot, service: str) -> list[Object]:
    """Those of the newest revision; where that cannot be told, all."""
    pods = selected(objects, "Pod", {"app": service})
    deployment = find(objects, "Deployment", service)
    return (newest_of(objects, deployment, pods) if deployment else []) or pods


@dataclass(frozen=True)
class LogSource:
    """Whose last lines say why. `previous`: of the run before, since the container is being restarted."""

    pod: str
    container: str
    previous: bool


def log_source(objects: Snapshot, kind: str, name: str) -> LogSource | None:
    """The container that has ended badly last, or else one that runs and is not ready; None when none has run."""
    ended: list[tuple[str, LogSource]] = []
    running: list[LogSource] = []
    for pod in pods_of(objects, kind, name):
        state = status(pod)
        for container in [*(state.get("initContainerStatuses") or ()), *(state.get("containerStatuses") or ())]:
            now, last = container.get("state") or {}, container.get("lastState") or {}
            source = LogSource(name_of(pod), str(container.get("name")), "terminated" not in now)
            over = now.get("terminated") or last.get("terminated")
            if over and over.get("exitCode"):
                ended.append((str(over.get("finishedAt") or ""), source))
            elif now.get("running") and not container.get("ready"):
                running.append(LogSource(source.pod, source.container, False))
    if ended:
        return max(ended, key=lambda one: one[0])[1]
    return running[0] if running else None


def _refusal(message: str) -> str:
    """The registry's words alone, of a verdict's message: an image may be called anything."""
    return registry_words(message.partition("cannot be pulled: ")[2] or message)


def _out_of_memory(pod: Object) -> bool:
    state = status(pod)
    for container in [*(state.get("initContainerStatuses") or ()), *(state.get("containerStatuses") or ())]:
        for which in ("state", "lastState"):
            if ((container.get(which) or {}).get("terminated") or {}).get("reason") == "OOMKilled":
                return True
    return False


def _events(objects: Snapshot, kind: str, name: str, pods: list[Object], most: int = 5) -> list[str]:
    """Warnings about the subject and its pods, the newest last."""
    subject = find(objects, kind, name)
    told: list[tuple[str, str]] = []
    for obj in [*([subject] if subject else []), *pods]:
        for event in events_of(objects, obj):
            if event.get("type") == "Warning" and event.get("message"):
                words = " ".join(str(event["message"]).split())
                words = words if len(words) <= _LINE else f"...{words[-_LINE:]}"
                told.append((_moment(event), f"{event.get('reason')}: {words}"))
    return list(dict.fromkeys(text for _, text in sorted(told)))[-most:]


def _moment(event: Mapping[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")
