"""A recorded scenario: what was done, how the world around the operator behaved, and what was seen."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rehearsal.nim import image

Obj = dict[str, Any]
CUSTOM = ("NIMCache", "NIMService", "NIMPipeline")
REMOVED_SOON_S = 1.0
"""An exit that is followed by the pod's removal this soon was the answer to the pod's deletion, not the program's
own."""


@dataclass(frozen=True)
class Step:
    """One thing that a pod did, `after` seconds after its creation."""

    verb: str
    after: float
    detail: Obj


@dataclass
class Behaviour:
    """What the nth pod of an owner did; `scheduled`: seconds after creation when it got its node."""

    scheduled: float = 0.0
    steps: list[Step] = field(default_factory=list)


class Scenario:
    def __init__(self, folder: Path):
        self.name = folder.name
        self.actions = [json.loads(line) for line in (folder / "actions.jsonl").read_text().splitlines() if line]
        self.events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines() if line]
        namespaces = [a["object"].partition("/")[2] for a in self._of("client") if a["object"].startswith("Namespace/")]
        self.namespace = namespaces[0]
        self.behaviours = self._behaviours()

    def _of(self, *actors: str) -> list[Obj]:
        return [action for action in self.actions if action["actor"] in actors]

    @property
    def inputs(self) -> list[Obj]:
        """What is done to the cluster, in order: the client's deeds, the endpoint's answers, operator stops and
        starts."""
        operator = [a for a in self._of("cluster") if a["verb"] in ("stop", "start")]
        return sorted([*self._of("client", "endpoint"), *operator], key=lambda action: float(action["t"]))

    @property
    def stops_operator(self) -> bool:
        return any(action["actor"] == "cluster" and action["verb"] == "stop" for action in self.actions)

    @property
    def length(self) -> float:
        return max(float(entry["t"]) for entry in [*self.actions, *self.events])

    @property
    def pools(self) -> list[Obj]:
        """Nodes that are not like the others: `node_selector`, `nodes`, `gpu_allocatable`."""
        return [a["detail"] for a in self._of("cluster") if a["verb"] == "fault" and a["object"].startswith("Node/")]

    def never_bound(self, claim: str) -> bool:
        return any(
            a["verb"] == "fault" and a["object"] == f"PersistentVolumeClaim/{claim}" for a in self._of("provisioner")
        )

    def model(self) -> str:
        """What /v1/models says where the action does not: the name that the real operator read."""
        for entry in reversed(self.events):
            name = (
                entry["object"].get("status", {}).get("model", {}).get("name")
                if entry["object"]["kind"] in CUSTOM
                else ""
            )
            if name:
                return str(name)
        return "some/model"

    def manifest(self, reference: str) -> str:
        """What a selection pod of this image prints: the profiles that the recording shows, with the stand-in's own
        ones of the image as those that must not be chosen."""
        seen: dict[str, Obj] = {}
        for entry in self.events:
            if entry["object"]["kind"] == "NIMCache" and _puller(entry["object"]) == reference:
                for profile in entry["object"].get("status", {}).get("profiles") or []:
                    seen[profile["name"]] = profile
        text = image.manifest_text(image.describe(reference))
        own = yaml.safe_load(text)
        if not seen or "schema_version" in own:
            if not seen:
                return text
            own = {}
        for name, profile in seen.items():
            tags = {"model": profile["model"], "release": profile["release"], "tags": profile["config"]}
            own[name] = tags
        return yaml.safe_dump(own)

    def _behaviours(self) -> dict[tuple[str, int], Behaviour]:
        result: dict[tuple[str, int], Behaviour] = defaultdict(Behaviour)
        for action in self._of("kubelet", "cluster"):
            detail = action["detail"]
            if "owner" not in detail or "nth" not in detail:
                continue
            behaviour = result[detail["owner"], detail["nth"]]
            if action["actor"] == "kubelet":
                behaviour.steps.append(Step(action["verb"], detail["after_create_s"], detail))
            elif action["verb"] == "schedule":
                behaviour.scheduled = detail["after_create_s"]
        for behaviour in result.values():
            behaviour.steps = _own_steps(sorted(behaviour.steps, key=lambda step: step.after))
        return dict(result)

    def owners(self, kind: str) -> list[str]:
        """Names of the owners of this kind, in the order in which their first pods came."""
        names = [owner.partition("/")[2] for owner, _ in self.behaviours if owner.startswith(f"{kind}/")]
        return list(dict.fromkeys(names))


def _own_steps(steps: list[Step]) -> list[Step]:
    removed = next((step.after for step in steps if step.verb == "remove"), None)
    return [
        step
        for step in steps
        if step.verb not in ("remove", "warn")
        and not (step.verb == "exit" and removed is not None and removed - step.after < REMOVED_SOON_S)
    ]


def _puller(cache: Obj) -> str:
    source = cache["spec"]["source"]
    return str(next((settings.get("modelPuller", "") for settings in source.values()), ""))
