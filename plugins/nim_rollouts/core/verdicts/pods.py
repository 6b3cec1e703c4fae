"""What keeps pods from running: image pulls, crash loops, scheduling, volumes, probes.

The wordings are those of the kubelet and of kube-scheduler; they are matched loosely, since container runtimes differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nim_rollouts.core.verdicts.model import Blocker, Object, Snapshot, Verdict, failed, progressing
from nim_rollouts.core.verdicts.objects import condition, events_of, is_deleting, ref, status

_PULL_REASONS = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ErrImageNeverPull", "InvalidImageName")
# Restarts after which a container that does not stay up counts as failed. A container that runs out of memory is
# failed at once: the same model on the same limits runs out again.
_CRASHES = 3


@dataclass(frozen=True)
class Trouble:
    """What is wrong with one pod. `final`: waiting longer cannot help."""

    reason: str
    message: str
    evidence: list[str]
    final: bool
    shown: bool = False
    """True when the reason itself is to be shown while it is not yet final."""

    def verdict(self, stage: str, message: str, evidence: list[str]) -> Verdict:
        """The verdict on what the pod belongs to, which is otherwise in `stage`."""
        if self.final:
            return failed(self.reason, self.message, self.evidence)
        if self.shown:
            return progressing(self.reason, self.message, [*evidence, *self.evidence])
        return progressing(stage, message, evidence, self.blocker)

    @property
    def blocker(self) -> Blocker:
        """As what a wait hangs on."""
        return Blocker(self.reason, self.message, self.evidence)


def diagnose(objects: Snapshot, pods: Iterable[Object]) -> Trouble | None:
    """The worst trouble among pods that are not being deleted, a final one first."""
    found = [trouble for pod in pods if not is_deleting(pod) for trouble in _troubles(objects, pod)]
    return max(found, key=lambda trouble: (trouble.final, trouble.shown), default=None)


def _troubles(objects: Snapshot, pod: Object) -> Iterable[Trouble]:
    scheduling = _scheduling(pod)
    if scheduling:
        yield scheduling
    state = status(pod)
    for container in [*(state.get("initContainerStatuses") or ()), *(state.get("containerStatuses") or ())]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _PULL_REASONS:
            yield _pull(objects, pod, container, waiting)
        elif waiting.get("reason") in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
            yield _trouble(
                pod, "container-config", f"container cannot be created: {waiting.get('message')}", final=False
            )
        else:
            crash = _crash(pod, container, waiting)
            if crash:
                yield crash
        if not container.get("ready") and (container.get("state") or {}).get("running"):
            probe = _startup_probe(objects, pod)
            if probe:
                yield probe


def _scheduling(pod: Object) -> Trouble | None:
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") != "False" or scheduled.get("reason") != "Unschedulable":
        return None
    message = str(scheduled.get("message") or "")
    if "is being deleted" in message:
        reason = "volume-terminating"
    elif "unbound immediate PersistentVolumeClaims" in message:
        reason = "volume-unbound"
    elif "Insufficient nvidia.com/gpu" in message:
        reason = "unschedulable-gpu"
    else:
        reason = "unschedulable"
    return _trouble(pod, reason, f"no node for the pod: {message}", final=False)


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
        event.get("reason") == "Pulling" and int(event.get("count") or 1) > 1 for event in events
    )
    message = f"image {image} cannot be pulled: {_tail(text) or waiting.get('reason')}"
    return _trouble(pod, reason, message, final=final and backed_off, shown=final, state=str(waiting.get("reason")))


def _pull_reason(text: str) -> tuple[str, bool]:
    """Slug, and whether another try is pointless."""
    if re.search(r"\b429\b|toomanyrequests|too many requests", text, re.IGNORECASE):
        return "image-pull-rate-limited", False
    if re.search(r"\b40[123]\b|unauthorized|forbidden|insufficient_scope|payment required|denied", text, re.IGNORECASE):
        return "image-pull-unauthorized", True
    if re.search(r"\b404\b|not found|manifest unknown|name unknown|InvalidImageName|couldn't parse image", text):
        return "image-pull-not-found", True
    return "image-pull-failing", False


def _crash(pod: Object, container: Mapping[str, Any], waiting: Mapping[str, Any]) -> Trouble | None:
    last = (container.get("lastState") or {}).get("terminated") or {}
    restarts = int(container.get("restartCount") or 0)
    looping = waiting.get("reason") == "CrashLoopBackOff"
    if not last or container.get("ready") or not (looping or restarts >= 2):
        return None
    code, why = last.get("exitCode"), last.get("reason")
    out_of_memory = why == "OOMKilled"
    if code == 0 and not looping:
        return None
    name = container.get("name")
    return _trouble(
        pod,
        "crash-loop-oom" if out_of_memory else "crash-loop",
        f"container {name} keeps crashing: {restarts} restarts, last exit {code} {why}",
        final=out_of_memory or restarts >= _CRASHES,
        state="CrashLoopBackOff" if looping else "running",
    )


def _startup_probe(objects: Snapshot, pod: Object) -> Trouble | None:
    for event in events_of(objects, pod):
        message = str(event.get("message") or "")
        if event.get("reason") == "Unhealthy" and message.startswith("Startup probe failed"):
            return _trouble(pod, "startup-probe-failing", f"the startup probe keeps failing: {message}", final=False)
    return None


def _trouble(
    pod: Object, reason: str, message: str, *, final: bool, shown: bool = False, state: str | None = None
) -> Trouble:
    where = f"{ref(pod, 'Pod')}" + (f" state={state}" if state else "")
    return Trouble(reason, " ".join(message.split()), [where], final, shown)


def _tail(text: str, length: int = 220) -> str:
    """The end of a long pull error: what matters stands last."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"...{text[-length:]}"
