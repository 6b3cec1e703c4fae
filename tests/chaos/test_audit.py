"""The reading of the audit log, on lines of its shape: a mistake here would make every proof of chaos empty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.chaos.audit import AuditLog, Point, Write, made_for_us, makings, points, repeated

AIRFLOW, OPERATOR = "arn:aws:iam::123456789012:user/airflow", "system:serviceaccount:nim-operator:operator"


def _entry(verb: str, resource: str, name: str, code: int, *, user: str = AIRFLOW, **other: Any) -> dict[str, Any]:
    about = {"resource": resource, "namespace": "models", "name": name, **other.pop("about", {})}
    return {
        "kind": "Event",
        "stage": "ResponseComplete",
        "requestURI": f"/{resource}/{name}?fieldManager=x",
        "verb": verb,
        "user": {"username": user},
        "userAgent": "test",
        "objectRef": about,
        "responseStatus": {"code": code},
        "requestReceivedTimestamp": "2026-11-23T22:54:31.500000Z",
        "stageTimestamp": "2026-11-23T22:54:31.750000Z",
        **other,
    }


def _write(log: Path, *entries: dict[str, Any]) -> None:
    with log.open("a") as out:
        out.writelines(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries)


def test_only_what_changes_an_object_is_a_write() -> None:
    assert Write.read(_entry("patch", "jobs", "a", 201)) is not None
    assert Write.read(_entry("patch", "jobs", "a", 201, requestURI="/jobs/a?dryRun=All")) is None
    assert Write.read(_entry("patch", "nimcaches", "a", 200, about={"subresource": "status"})) is None
    assert Write.read(_entry("create", "tokenreviews", "", 201)) is None
    assert Write.read(_entry("get", "jobs", "a", 200)) is None
    assert Write.read(_entry("patch", "jobs", "a", 201, stage="Panic")) is None


def test_a_log_is_followed_from_now_on_and_a_half_line_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    _write(path, _entry("patch", "jobs", "before", 201))
    log = AuditLog(path)
    _write(path, _entry("patch", "jobs", "ours", 201), _entry("create", "pods", "", 201, user=OPERATOR))
    whole = json.dumps(_entry("patch", "jobs", "late", 200), separators=(",", ":")) + "\n"
    with path.open("a") as out:
        out.write(whole[:40])
    assert [write.name for write in log.fresh()] == ["ours"]
    with path.open("a") as out:
        out.write(whole[40:])
    (late,) = log.fresh()
    assert late.name == "late" and not late.made and late.answered - late.received == 0.25
    assert [write.name for write in log.all()] == ["ours", "", "late"]
    assert list(log.fresh()) == []
    log.close()


def test_a_second_object_of_one_intent_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.touch()
    log = AuditLog(path)
    job = Point("patch", "jobs", "llama-bench-*")
    _write(
        path,
        _entry("patch", "secrets", "key", 403),
        _entry("patch", "jobs", "llama-bench-0a1b2c3d", 201),
        _entry("patch", "jobs", "llama-bench-0a1b2c3d", 200),
        _entry("patch", "jobs", "llama-bench-99999999", 201),
        _entry("create", "pods", "", 201, user=OPERATOR),
        _entry("create", "events", "e", 201, user=OPERATOR),
        _entry("create", "configmaps", "kube-root-ca.crt", 201, user=OPERATOR),
    )
    writes = log.all()
    log.close()
    assert points(writes) == [job], "what was refused is no place to kill at; two runs' Jobs are one"
    assert makings(writes) == {job: 2}
    assert repeated(writes) == {"jobs"}
    assert made_for_us(writes, "models") == {"pods": 1}
