"""Finding out why a wait ended badly: what `core.diagnosis` needs besides the snapshot is fetched here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nim_rollouts.core.errors import one_line

if TYPE_CHECKING:
    from nim_rollouts.core.diagnosis import Answer, Diagnosis
    from nim_rollouts.core.spent import Part
    from nim_rollouts.core.verdicts import Snapshot, Subject, Verdict
    from nim_rollouts.operators.base import Stage

LAST_LINES = 30
# Karpenter's NodeClaims have no namespace; events about such objects are kept in this one.
_EVENTS_OF_NODES = "default"


def explain(
    stage: Stage, subject: Subject, verdict: Verdict, snapshot: Snapshot, parts: Sequence[Part] = ()
) -> Diagnosis:
    """The diagnosis, with log lines and the node provisioner's words where they can be had.

    What cannot be fetched is left out: a diagnosis with less evidence is better than another error in its place.
    """
    from nim_rollouts.core.diagnosis import diagnose
    from nim_rollouts.operators.base import now

    late = verdict.overdue()
    return diagnose(
        subject.kind,
        subject.name,
        verdict,
        snapshot,
        now(),
        log=_log(stage, subject, snapshot),
        budget=parts,
        nodes=_nodes(stage) if late.reason.startswith("unschedulable") else (),
        endpoint=_models(stage, subject, snapshot) if late.reason == "model-endpoint-unavailable" else None,
    )


def _log(stage: Stage, subject: Subject, snapshot: Snapshot) -> list[str]:
    from nim_rollouts.core.diagnosis import log_source

    source = log_source(snapshot, subject.kind, subject.name)
    if source is None or subject.namespace is None:
        return []
    try:
        text = stage.session.cluster.logs(
            subject.namespace, source.pod, source.container, previous=source.previous, tail=LAST_LINES
        )
    except Exception as error:
        stage.log.info("the log of %s cannot be read: %s", source.pod, one_line(error))
        return []
    return text.splitlines()


def _models(stage: Stage, subject: Subject, snapshot: Snapshot) -> Answer | None:
    """What a pod answers on /v1/models: no object tells what the operator got there."""
    from nim_rollouts.core.diagnosis import Answer, pods_of

    pods = pods_of(snapshot, subject.kind, subject.name)
    if subject.kind != "NIMService" or subject.namespace is None or not pods:
        return None
    name = str(pods[0]["metadata"]["name"])
    try:
        with stage.session.cluster.port_forward(subject.namespace, name, stage.session.deployment.service.port) as http:
            return Answer(name, http.request("GET", "/v1/models", timeout_s=10.0).status)
    except Exception as error:
        stage.log.info("%s cannot be asked: %s", name, one_line(error))
        return None


def _nodes(stage: Stage) -> list[str]:
    try:
        events = stage.session.cluster.list("v1", "Event", _EVENTS_OF_NODES)
    except Exception as error:
        stage.log.info("the events of nodes cannot be read: %s", one_line(error))
        return []
    told = [
        (str(event.get("lastTimestamp") or ""), f"{event.get('reason')}: {event.get('message')}")
        for event in events
        if (event.get("involvedObject") or {}).get("kind") in ("NodeClaim", "NodePool")
        and event.get("type") == "Warning"
    ]
    return list(dict.fromkeys(text for _, text in sorted(told)))[-3:]


def profiles_offered(stage: Stage) -> list[str]:
    """What the image has instead of the profile that was asked for; empty where it cannot be had."""
    from nim_rollouts.core.offers import offered

    names = stage.session.names
    try:
        kept = stage.session.cluster.get("v1", "ConfigMap", names.namespace, f"{names.cache}-manifest")
    except Exception as error:
        stage.log.info("the image's profiles cannot be read: %s", one_line(error))
        return []
    found = [line for text in ((kept or {}).get("data") or {}).values() for line in offered(str(text))]
    for line in found:
        stage.log.info("the image offers %s", line)
    return found
