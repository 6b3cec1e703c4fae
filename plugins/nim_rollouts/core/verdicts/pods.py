"""What keeps pods from running: image pulls, crash loops, scheduling, volumes, probes.

The wordings are those of the kubelet and of kube-scheduler; they are matched loosely, since container runtimes differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nim_rollouts.core.clues import of_nodes
from nim_rollouts.core.verdicts.model import Blocker, Object, Snapshot, Verdict, failed, progressing, stuck
from nim_rollouts.core.verdicts.objects import (
    condition,
    count,
    events_of,
    has_ended,
    is_deleting,
    is_true,
    moment_of,
    ref,
    status,
    time_of,
    times_seen,
)

_REFUSED = (
    r"\b40[123]\b|unauthorized|forbidden|insufficient_scope|payment required|access.denied|\bdenied:|denied$"
    r"|authorization failed|authentication required|no basic auth credentials|invalid username/password"
)
_ABSENT = r"\b404\b|not found|manifest unknown|name unknown|InvalidImageName|parse image|invalid reference"
_PREAMBLE = (
    r"^(?:(?:Back-off pulling image|Failed to pull image|failed to pull and unpack image|failed to resolve reference)"
    r" \"[^\"]*\": |(?:Error: )?ErrImagePull: |rpc error: code = \w+ desc = )+"
)
_PULL_REASONS = (
    "ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ErrImageNeverPull", "InvalidImageName",
    "ImageInspectError", "SignatureValidationFailed",
)  # fmt: skip
_NOT_CREATED = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
# Restarts after which a container that does not stay up counts as failed. A container that runs out of memory is
# failed at once: the same model on the same limits runs out again.
_CRASHES = 3
#: What a healthy start, too, hangs on for minutes.
STARTING = "startup-probe-failing"
# Seconds of running after which a kubelet forgets a container's crashes, and a loop is none.
_STEADY_S = 600
_BEFORE_CONTAINERS = ("FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodSandBox", "Pulling")
_UNBOUND = (
    r"unbound immediate PersistentVolumeClaims|persistentvolumeclaim \S+ not found"
    r"|didn't find available persistent volumes to bind|did not have enough free storage"
)
_NOT_PLACED = ("Unschedulable", "SchedulingGated", "SchedulerError")
_KILLED = (137, 143)  # ended by SIGKILL, by SIGTERM


@dataclass(frozen=True)
class Trouble:
    """What is wrong with one pod. `final`: waiting longer cannot help; `hangs`: then it is stuck, not failed."""

    reason: str
    message: str
    evidence: list[str]
    final: bool
    shown: bool = False
    """True when the reason itself is to be shown while it is not yet final."""
    hangs: bool = False
    since: str = ""
    """When the step began in which the pod is: see `Blocker.since`."""

    def verdict(self, stage: str, message: str, evidence: list[str]) -> Verdict:
        """The verdict on what the pod belongs to, which is otherwise in `stage`."""
        if self.final:
            return (stuck if self.hangs else failed)(self.reason, self.message, self.evidence)
        if self.shown:
            return progressing(self.reason, self.message, [*evidence, *self.evidence], self.blocker)
        return progressing(stage, message, evidence, self.blocker)

    @property
    def blocker(self) -> Blocker:
        """As what a wait hangs on."""
        return Blocker(self.reason, self.message, self.evidence, self.since)


def diagnose(objects: Snapshot, pods: Iterable[Object]) -> Trouble | None:
    """The worst trouble among pods that are not being deleted: a final one first, one that merely takes time last."""
    found = [trouble for pod in pods if not is_deleting(pod) for trouble in _troubles(objects, pod)]
    return max(found, key=lambda trouble: (trouble.final, trouble.shown, trouble.reason != STARTING), default=None)


def refused(objects: Snapshot, makers: Iterable[Object]) -> Blocker | None:
    """Why Jobs, ReplicaSets or Deployments cannot make pods: a quota, admission, a missing service account."""
    for maker in makers:
        texts = [
            str(one.get("message") or "") for one in [condition(maker, "ReplicaFailure")] if one.get("status") == "True"
        ]
        if not texts and not _has_its_pods(maker):
            said = sorted((e for e in events_of(objects, maker) if e.get("reason") == "FailedCreate"), key=moment_of)
            texts = [str(event.get("message") or "") for event in said]
        if texts:
            reason = "quota-exceeded" if is_quota(texts[-1]) else "pods-refused"
            message = f"pods cannot be made: {_tail(texts[-1])}"
            return Blocker(reason, message, [f"{ref(maker)} FailedCreate"])
    return None


def _has_its_pods(maker: Object) -> bool:
    """True for what has made its pods after all: the event that it could not stays for an hour."""
    state = status(maker)
    if maker.get("kind") == "ReplicaSet":
        return count(state, "replicas") >= count(maker.get("spec") or {}, "replicas", 1)
    return bool(state.get("active") or state.get("ready"))


def is_quota(text: str) -> bool:
    """True when a text is a ResourceQuota's refusal (as the API server's admission words it)."""
    return "exceeded quota" in text or "failed quota" in text


def _troubles(objects: Snapshot, pod: Object) -> Iterable[Trouble]:
    scheduling = _scheduling(objects, pod)
    if scheduling:
        yield scheduling
    state = status(pod)
    if has_ended(pod):
        # What a pod that has ended once met is history; what became of its work is its owner's to say.
        return
    mount = _mount(objects, pod)
    if mount:
        yield mount
    for container in [*(state.get("initContainerStatuses") or ()), *(state.get("containerStatuses") or ())]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _PULL_REASONS:
            yield _pull(objects, pod, container, waiting)
        elif waiting.get("reason") in _NOT_CREATED:
            yield _trouble(
                pod, "container-config", f"container cannot be created: {waiting.get('message')}", final=False
            )
        else:
            crash = _crash(objects, pod, container, waiting)
            if crash:
                yield crash
        if not container.get("ready") and (container.get("state") or {}).get("running"):
            probe = _startup_probe(objects, pod, container)
            if probe:
                yield probe


def _scheduling(objects: Snapshot, pod: Object) -> Trouble | None:
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") != "False" or scheduled.get("reason") not in _NOT_PLACED:
        return None
    message = str(scheduled.get("message") or "")
    if "is being deleted" in message:
        reason = "volume-terminating"
    elif re.search(_UNBOUND, message):
        reason = "volume-unbound"
    elif "Insufficient nvidia.com/" in message:
        reason = "unschedulable-gpu"
    else:
        reason = "unschedulable"
    said = provisioner_said(objects, pod)
    message = f"no node for the pod: {message}" + (f"; the node provisioner: {_tail(said)}" if said else "")
    return _trouble(pod, reason, message, final=False)


def provisioner_said(objects: Snapshot, pod: Object) -> str | None:
    """Why no node is started for a pod, in the words of whoever starts nodes; None once it has found one after all.

    (Karpenter tells both on the pod: FailedScheduling, as the scheduler does, and Nominated.)"""
    found = ("", "")
    for event in events_of(objects, pod):
        text = str(event.get("message") or "")
        if event.get("reason") == "Nominated" or (event.get("reason") == "FailedScheduling" and of_nodes([text])):
            found = max(found, (moment_of(event), text if event["reason"] == "FailedScheduling" else ""))
    return found[1] or None


def _mount(objects: Snapshot, pod: Object) -> Trouble | None:
    """What comes before a pod's containers: volumes that the node cannot mount, a network that it cannot be given. Told
    by events alone, the newest counts; the pod's status says only ContainerCreating."""
    waiting = [(one.get("state") or {}).get("waiting") or {} for one in status(pod).get("containerStatuses") or ()]
    if not any(one.get("reason") in ("ContainerCreating", "PodInitializing") for one in waiting):
        return None
    if is_true(pod, "PodReadyToStartContainers"):
        return None  # volumes are mounted before the sandbox is made, and that is there
    told = (event for event in events_of(objects, pod) if event.get("reason") in _BEFORE_CONTAINERS)
    said = sorted(told, key=lambda event: (moment_of(event), event.get("reason") == "Pulling"))
    if not said or said[-1].get("reason") == "Pulling":
        return None
    text = _tail(str(said[-1].get("message") or ""))
    if said[-1].get("reason") == "FailedCreatePodSandBox":
        return _trouble(pod, "pod-network-failing", f"the pod's sandbox cannot be made: {text}", final=False)
    if re.search(r"\b(?:secret|configmap) \S+ not found", text):
        return _trouble(pod, "container-config", f"a volume cannot be made: {text}", final=False)
    return _trouble(pod, "volume-mount-failing", f"a volume of the pod cannot be mounted: {text}", final=False)


def _pull(objects: Snapshot, pod: Object, container: Mapping[str, Any], waiting: Mapping[str, Any]) -> Trouble:
    # A back-off's message does not always repeat why; the Failed event says it.
    events = list(events_of(objects, pod))
    texts = [str(waiting.get("message") or "")]
    texts += [str(event.get("message") or "") for event in events if event.get("reason") == "Failed"]
    text = next((one for one in texts if _pull_reason(one)[0] != "image-pull-failing"), texts[0])
    reason, final = _pull_reason(text)
    image = container.get("image")
    # One refusal may be a blip of the registry; a kubelet that backs off, or pulls again after that, has been refused
    # and will be. (The pod's status leads: its BackOff event arrives a moment before it.)
    backed_off = waiting.get("reason") in ("ImagePullBackOff", "InvalidImageName") or any(
        event.get("reason") == "Pulling" and times_seen(event) > 1 for event in events
    )
    message = f"image {image} cannot be pulled: {_tail(_cause(text)) or waiting.get('reason')}"
    return _trouble(pod, reason, message, final=final and backed_off, shown=final, state=str(waiting.get("reason")))


def _pull_reason(text: str) -> tuple[str, bool]:
    """Slug, and whether another try is pointless."""
    text = registry_words(text)
    if re.search(r"\b429\b|toomanyrequests|too many requests|rate limit", text, re.IGNORECASE):
        return "image-pull-rate-limited", False
    if re.search(_REFUSED, text, re.IGNORECASE):
        return "image-pull-unauthorized", True
    if re.search(_ABSENT, text, re.IGNORECASE):
        return "image-pull-not-found", True
    return "image-pull-failing", False


def _cause(text: str) -> str:
    """A pull error without what kubelet and containerd put before the cause, the image's name again and again."""
    return re.sub(_PREAMBLE, "", " ".join(text.split()))


def registry_words(text: str) -> str:
    """Without what is quoted and without addresses: an image may be called 401 or denied, and have a tag of numbers;
    only the registry's own words count."""
    text = re.sub(r"\\?\"[^\"]*\"", " ", _cause(text))
    text = re.sub(r"https?://\S*?(?=:?(?:\s|$))", " ", text)
    return re.sub(r"\S+/\S+:\S+(?=: )", " ", text)


def _crash(objects: Snapshot, pod: Object, container: Mapping[str, Any], waiting: Mapping[str, Any]) -> Trouble | None:
    last = (container.get("lastState") or {}).get("terminated") or {}
    restarts = int(container.get("restartCount") or 0)
    looping = waiting.get("reason") == "CrashLoopBackOff"
    if container.get("ready") or not (looping or (last and restarts >= 2)):
        return None
    code, why = last.get("exitCode"), last.get("reason")
    out_of_memory = why == "OOMKilled"
    if not looping and (code == 0 or _ran_s(last) >= _STEADY_S):
        return None
    name = container.get("name")
    if not out_of_memory and code in _KILLED and probe_said(objects, pod):
        # The kubelet ended it: the probe's patience is over, the model was still loading.
        return _trouble(
            pod,
            "startup-probe-failing",
            f"container {name} was ended {restarts} times because its startup probe did not pass in time",
            final=restarts >= _CRASHES,
            hangs=True,
        )
    return _trouble(
        pod,
        "crash-loop-oom" if out_of_memory else "crash-loop",
        f"container {name} keeps crashing: {restarts} restarts, last exit {code or ''} {why or 'unknown'}",
        final=out_of_memory or restarts >= _CRASHES,
        state="CrashLoopBackOff" if looping else "running",
    )


def _ran_s(ended: Mapping[str, Any]) -> float:
    """Seconds that a container ran until it ended; 0 where that is not known."""
    begin, end = (time_of(ended.get(field)) for field in ("startedAt", "finishedAt"))
    return (end - begin).total_seconds() if begin and end else 0.0


def _startup_probe(objects: Snapshot, pod: Object, container: Mapping[str, Any]) -> Trouble | None:
    """A container that runs and has not passed its startup probe yet. Normal for minutes; evidence at the deadline."""
    if container.get("started"):
        return None
    said = probe_said(objects, pod)
    if said is None and not (container.get("started") is False and _has_startup_probe(pod, container)):
        return None
    how = "its startup probe keeps failing" if said else "it has not passed its startup probe yet"
    message = f"container {container.get('name')} runs, {how}"
    began = str(((container.get("state") or {}).get("running") or {}).get("startedAt") or "")
    return _trouble(pod, "startup-probe-failing", f"{message}: {said}" if said else message, final=False, since=began)


def probe_said(objects: Snapshot, pod: Object) -> str | None:
    """The kubelet's words on a failed startup probe, if an event with them is left."""
    for event in events_of(objects, pod):
        message = str(event.get("message") or "")
        if event.get("reason") == "Unhealthy" and message.startswith("Startup probe failed"):
            return message
        if event.get("reason") == "Killing" and "failed startup probe" in message:
            return message
    return None


def _has_startup_probe(pod: Object, container: Mapping[str, Any]) -> bool:
    specs = (pod.get("spec") or {}).get("containers") or ()
    return any(one.get("name") == container.get("name") and one.get("startupProbe") for one in specs)


def _trouble(
    pod: Object,
    reason: str,
    message: str,
    *,
    final: bool,
    shown: bool = False,
    hangs: bool = False,
    state: str | None = None,
    since: str = "",
) -> Trouble:
    where = f"{ref(pod, 'Pod')}" + (f" state={state}" if state else "")
    # A pod's time without a node begins with this condition, and so does that of its pulls and mounts once it has one.
    since = since or str(condition(pod, "PodScheduled").get("lastTransitionTime") or "")
    return Trouble(reason, " ".join(message.split()), [where], final, shown, hangs, since)


def _tail(text: str, length: int = 220) -> str:
    """The end of a long error: what matters stands last."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"...{text[-length:]}"
