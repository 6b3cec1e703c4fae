"""A pod's status from what its containers are doing: phase, conditions, container statuses. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rehearsal.kube import Obj

OURS = ("Initialized", "PodReadyToStartContainers", "Ready", "ContainersReady", "PodScheduled")
CREATING = {"waiting": {"reason": "ContainerCreating"}}
INITIALIZING = {"waiting": {"reason": "PodInitializing"}}


@dataclass
class ContainerState:
    """What a container status is made from. `state` and `last_state` are in the API's own shape."""

    spec: Obj
    init: bool = False
    state: Obj = field(default_factory=lambda: dict(CREATING))
    last_state: Obj = field(default_factory=dict)
    ready: bool = False
    started: bool = False
    restart_count: int = 0
    image_id: str = ""
    container_id: str = ""

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def sidecar(self) -> bool:
        return self.init and self.spec.get("restartPolicy") == "Always"

    @property
    def exit_code(self) -> int | None:
        """Of a container that has ended and is not waiting for a restart."""
        ended = self.state.get("terminated")
        return None if ended is None else int(ended["exitCode"])

    def adopt(self, old: Obj) -> None:
        """Go on from a status that an earlier runner wrote."""
        self.state, self.last_state = old.get("state", {}) or dict(CREATING), old.get("lastState", {})
        self.restart_count, self.image_id = old.get("restartCount", 0), old.get("imageID", "")
        self.container_id = old.get("containerID", "")

    def close(self) -> None:
        """The pod ends: a container that is not known to have run to its end is reported as the kubelet does."""
        if "terminated" not in self.state:
            words = "The container could not be located when the pod was terminated"
            ended = {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": words}
            self.state = {"terminated": ended | {"startedAt": None, "finishedAt": None}}
        self.ready = self.started = False

    def render(self) -> Obj:
        result = {
            "name": self.name, "state": self.state, "lastState": self.last_state, "ready": self.ready,
            "restartCount": self.restart_count, "image": self.spec["image"], "imageID": self.image_id,
            "started": self.started,
        }  # fmt: skip
        return result | ({"containerID": self.container_id} if self.container_id else {})


@dataclass
class PodState:
    """The rest: addresses, and an end that came from outside the containers (a deadline)."""

    containers: Sequence[ContainerState]
    host_ip: str = ""
    pod_ip: str = ""
    start_time: str = ""
    sandbox: bool = False
    """The pod's network and volumes are there (PodReadyToStartContainers)."""
    ending: bool = False
    """Being deleted: a container that ended is not started again, whatever the restart policy says."""
    failed: tuple[str, str] | None = None
    """Reason and message of an end that overrides the containers' exit codes."""


def phase(policy: str, state: PodState) -> str:
    """Pending, Running, Succeeded or Failed, by the kubelet's rules."""
    if state.failed is not None:
        # Reported only once nothing runs any more, so that the pod's end means its processes' end.
        if not any("running" in c.state for c in state.containers):
            return "Failed"
    for each in (c for c in state.containers if c.init and not c.sidecar):
        if each.exit_code != 0:
            final = each.exit_code is not None and (policy == "Never" or state.ending)
            return "Failed" if final else "Pending"
    return _main_phase(policy, state.ending, [c for c in state.containers if not c.init])


def _main_phase(policy: str, ending: bool, mains: Sequence[ContainerState]) -> str:
    if any("running" in c.state for c in mains):
        return "Running"
    if any("waiting" in c.state and not c.last_state.get("terminated") for c in mains):
        return "Pending"
    ended = [c for c in mains if c.exit_code is not None]
    if len(ended) < len(mains):
        return "Running"
    if ending or policy == "Never":
        return "Succeeded" if all(c.exit_code == 0 for c in mains) else "Failed"
    if policy == "OnFailure" and all(c.exit_code == 0 for c in mains):
        return "Succeeded"
    return "Running"


def qos_class(spec: Obj) -> str:
    """BestEffort, Burstable or Guaranteed, by cpu and memory alone."""
    every = [*spec.get("initContainers", []), *spec["containers"]]
    known, guaranteed = False, True
    for container in every:
        resources = container.get("resources", {})
        limits, requests = resources.get("limits", {}), resources.get("requests", {})
        for name in ("cpu", "memory"):
            limit, request = limits.get(name, "0"), requests.get(name, limits.get(name, "0"))
            known = known or any(value not in ("0", 0) for value in (limit, request))
            guaranteed = guaranteed and limit not in ("0", 0) and limit == request
    return "BestEffort" if not known else "Guaranteed" if guaranteed else "Burstable"


def render(pod: Obj, state: PodState, now: str, last: Obj | None = None) -> Obj:
    """The whole status. Conditions of other writers (in `pod`) are kept, and transition times where nothing changed
    since the status that was written `last`."""
    old = pod.get("status", {})
    spec, policy = pod["spec"], pod["spec"].get("restartPolicy", "Always")
    current = phase(policy, state)
    conditions = _conditions(state, current)
    before = {c["type"]: c for c in (last or old).get("conditions", [])}
    for each in conditions:
        earlier = before.get(each["type"], {})
        same = earlier.get("status") == each["status"]
        each["lastTransitionTime"] = earlier["lastTransitionTime"] if same else now
    conditions += [c for c in old.get("conditions", []) if c["type"] not in OURS]
    scheduled = before.get("PodScheduled", {}).get("lastTransitionTime", now)
    conditions.append(
        {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": scheduled}
    )
    result: Obj = {
        "observedGeneration": pod["metadata"].get("generation", 1),
        "phase": current,
        "conditions": conditions,
        "hostIP": state.host_ip,
        "hostIPs": [{"ip": state.host_ip}],
        "startTime": state.start_time,
        "qosClass": old.get("qosClass") or qos_class(spec),
        "containerStatuses": [c.render() for c in state.containers if not c.init],
    }
    if any(c.init for c in state.containers):
        result["initContainerStatuses"] = [c.render() for c in state.containers if c.init]
    if state.pod_ip:
        result |= {"podIP": state.pod_ip, "podIPs": [{"ip": state.pod_ip}]}
    if state.failed is not None and current == "Failed":
        result |= {"reason": state.failed[0], "message": state.failed[1]}
    return result


def _conditions(state: PodState, current: str) -> list[Obj]:
    over = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(current)
    pending = [c.name for c in state.containers if c.init and not (c.started if c.sidecar else c.exit_code == 0)]
    unready = [c.name for c in state.containers if not c.ready and (not c.init or c.sidecar)]
    result = []

    def add(kind: str, good: bool, reason: str = "", message: str = "") -> None:
        entry: Obj = {"type": kind, "status": "True" if good else "False", "lastProbeTime": None}
        if reason and not good:
            entry["reason"] = reason
        if message and not good:
            entry["message"] = message
        result.append(entry)

    waiting = f"containers with incomplete status: [{' '.join(pending)}]"
    add("Initialized", not pending or current == "Succeeded", "ContainersNotInitialized", waiting)
    add("PodReadyToStartContainers", state.sandbox and not over)
    for kind in ("Ready", "ContainersReady"):
        if over:
            add(kind, False, over)
        else:
            words = f"containers with unready status: [{' '.join(unready)}]"
            add(kind, not unready, "ContainersNotReady", words)
    return result
