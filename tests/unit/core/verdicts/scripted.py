"""Snapshots of recordings, to be altered: real objects, another turn of events.

What is made of them is judged now and at its deadline, from everything and from what a watch keeps (`clients.slim`).
"""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

from nim_rollouts.clients.slim import slim
from nim_rollouts.core.diagnosis import diagnose
from nim_rollouts.core.verdicts import Subject, Verdict

from .replay import OWN, load

NOW = datetime(2026, 11, 23, 18, 0, tzinfo=UTC)
NAME = "meta-llama3-8b-instruct"
IMAGE = "nvcr.io/nim/meta/llama-3.1-8b-instruct"
CACHE, PIPELINE = Subject("NIMCache", NAME, "ns"), Subject("NIMPipeline", "rag", "ns")
World = dict[str, list[dict[str, Any]]]


def at(scenario: str, t: float) -> World:
    """The objects as they were then, to be altered."""
    found: World = {}
    for moment, objects in load(scenario, OWN).snapshots():
        if moment > t:
            break
        found = objects
    return copy.deepcopy(found)


def one(world: World, kind: str, name: str = "") -> dict[str, Any]:
    return next(obj for obj in world[kind] if not name or obj["metadata"]["name"] == name)


def serving_pod(world: World) -> dict[str, Any]:
    return next(pod for pod in world["Pod"] if pod["metadata"]["labels"].get("app") == NAME)


def service(tag: str = "1.3.3", replicas: int = 1) -> Subject:
    return Subject("NIMService", NAME, "ns", image=f"{IMAGE}:{tag}", replicas=replicas)


def said(world: World, subject: Subject) -> tuple[str, str, str]:
    """(state, slug, slug at the deadline)"""
    verdict = judge(world, subject)
    return str(verdict.state), verdict.reason, verdict.overdue().reason


def judge(world: World, subject: Subject) -> Verdict:
    verdict = subject.judge(world, NOW)
    kept = {kind: [slim(copy.deepcopy(obj)) for obj in objects] for kind, objects in world.items()}
    assert subject.judge(kept, NOW) == verdict
    assert diagnose(subject.kind, subject.name, verdict, kept, NOW).line
    return verdict


def layer(world: World, subject: Subject) -> str:
    return str(diagnose(subject.kind, subject.name, judge(world, subject), world, NOW).layer)


def tell(world: World, about: dict[str, Any], reason: str, message: str, *, at: str = "18:00:00", **more: Any) -> None:
    involved = {"kind": about["kind"], "name": about["metadata"]["name"], "uid": about["metadata"]["uid"]}
    metadata = {"name": f"e{len(world.setdefault('Event', []))}", "creationTimestamp": f"2026-11-23T{at}Z"}
    event = {"kind": "Event", "metadata": metadata, "involvedObject": involved, "reason": reason, "message": message}
    world["Event"].append({**event, "type": "Warning", "lastTimestamp": f"2026-11-23T{at}Z", **more})


def waits(pod: dict[str, Any], reason: str, message: str = "", **more: Any) -> None:
    container = pod["status"]["containerStatuses"][0]
    container.update({"state": {"waiting": {"reason": reason, "message": message}}, "ready": False, **more})


def crashed(pod: dict[str, Any], restarts: int, *, looping: bool = True, reason: str = "Error", code: int = 1,
            ran: tuple[str, str] = ("17:00:00", "17:00:30")) -> None:  # fmt: skip
    times = {"startedAt": f"2026-11-23T{ran[0]}Z", "finishedAt": f"2026-11-23T{ran[1]}Z"}
    last = {"terminated": {"exitCode": code, "reason": reason, **times}}
    state = {"waiting": {"reason": "CrashLoopBackOff"}} if looping else {"running": {"startedAt": times["finishedAt"]}}
    container = pod["status"]["containerStatuses"][0]
    container.update(
        {"state": state, "lastState": last, "restartCount": restarts, "ready": False, "started": False}
    )  # fmt: skip


def behind(world: World, **status: Any) -> None:
    """The Deployment's pods are not there."""
    deployment = one(world, "Deployment")
    deployment["status"].update({"availableReplicas": 0, "readyReplicas": 0, "unavailableReplicas": 1, **status})
