"""Cache, service, gate, smoke test: what is written in which order, and what an answer must be."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from nim_rollouts.clients.portforward import Response
from nim_rollouts.core.errors import (
    ApplyRejected,
    GateFailed,
    GateUnmeasured,
    NimRolloutsError,
    PlatformNotReady,
    PortForwardFailed,
    SmokeTestFailed,
    TunnelFailed,
    is_retryable,
)
from nim_rollouts.core.manifests import DEPLOYMENT_LABEL, ENVIRONMENT_LABEL
from nim_rollouts.operators.gate import GateOperator, SmokeTestOperator, check_completion
from nim_rollouts.operators.model import NUDGED, ApplyCacheOperator, ApplyServiceOperator
from nim_rollouts.operators.platform import ApplyPlatformOperator, ApplySecretsOperator
from nim_rollouts.operators.verify import VerifyPlatformOperator
from tests.unit.operators.conftest import DEPLOYMENT, World

MODEL = "meta/llama-3.1-8b-instruct"


def old_service(world: World, name: str = f"{DEPLOYMENT}-00000000", namespace: str = "nim-service") -> dict[str, Any]:
    return world.cluster.put(
        {
            "apiVersion": "apps.nvidia.com/v1alpha1",
            "kind": "NIMService",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {DEPLOYMENT_LABEL: DEPLOYMENT, ENVIRONMENT_LABEL: "test"},
            },
            "spec": {"image": {"repository": "nvcr.io/nim/x", "tag": "1"}},
        }
    )


def pod(world: World, restarts: int = 0, ended: str | None = None) -> dict[str, Any]:
    names, image = world.session().names, world.session().deployment.image.reference
    last = {"terminated": {"finishedAt": ended, "reason": "OOMKilled", "exitCode": 137}} if ended else {}
    return world.cluster.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "pod-1", "namespace": names.namespace, "labels": {"app": names.service}},
            "spec": {"containers": [{"image": image}]},
            "status": {"containerStatuses": [{"restartCount": restarts, "lastState": last}]},
        }
    )


def answering(*ready: Any, models: str = MODEL) -> Any:
    """Answers of a pod: `ready` one by one, then 200 for ever."""
    left = list(ready)

    def request(method: str, path: str, body: Any = None, *, timeout_s: float = 0) -> Response:
        if path == "/v1/models":
            return Response(200, {}, json.dumps({"data": [{"id": models}]}).encode())
        answer = left.pop(0) if left else 200
        if isinstance(answer, Exception):
            raise answer
        return Response(answer)

    return request


@pytest.fixture
def serving(world: World) -> World:
    world.accepted()
    world.session().ledger.record("apply_service", 1, "result", {"applied_at": datetime.now(UTC).isoformat()})
    return world


def test_the_cache_is_written_after_its_intent(world: World) -> None:
    world.accepted()
    stage = world.stage("apply_cache")
    facts = ApplyCacheOperator(task_id="apply_cache").run(stage)
    assert facts["applied"][0]["became"] == "created"
    assert stage.first_intent() == {"kind": "NIMCache", "name": stage.session.names.cache, "namespace": "nim-service"}
    again = ApplyCacheOperator(task_id="apply_cache").run(world.stage("apply_cache", 2))
    assert again["applied"][0]["became"] == "unchanged"


def test_replace_lets_the_old_service_go_before_the_new_one_comes(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.accepted()
    old_service(world)
    stage = world.stage("apply_service")
    facts = ApplyServiceOperator(task_id="apply_service").run(stage)
    service = stage.session.names.service
    assert world.cluster.log == [
        f"delete NIMService/{DEPLOYMENT}-00000000",
        f"gone NIMService/{DEPLOYMENT}-00000000",
        f"apply NIMService/{service}",
        f"apply Service/{DEPLOYMENT}",
    ]
    assert facts["image_from"] == ["nvcr.io/nim/x:1"]
    assert any("downtime" in line for line in caplog.messages)


def test_a_deployment_that_moved_leaves_no_service_in_its_old_namespace(world: World) -> None:
    """The name's hash does not cover the namespace: the old one may be its namesake."""
    world.accepted()
    stage = world.stage("apply_service")
    service = stage.session.names.service
    old_service(world, service, "elsewhere")
    facts = ApplyServiceOperator(task_id="apply_service").run(stage)
    assert world.cluster.get("", "NIMService", "elsewhere", service) is None
    assert [one["name"] for one in facts["replaced"]] == [service]
    first = stage.first_intent()
    assert first is not None and first["standing"] == {}, "what it made is taken back if it fails"


def test_a_standing_service_of_the_same_spec_is_left_alone(world: World) -> None:
    world.accepted()
    for number in (1, 2):
        stage = world.stage("apply_service", number)
        facts = ApplyServiceOperator(task_id="apply_service").run(stage)
    assert [one["became"] for one in facts["applied"]] == ["unchanged", "unchanged"]
    assert not [line for line in world.cluster.log if line.startswith("delete")]
    assert stage.first_intent()["standing"] == {}


def owned_by(owner: dict[str, Any]) -> dict[str, Any]:
    return {
        "ownerReferences": [{"kind": owner["kind"], "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}]
    }


def backing_off(world: World, name: str, metadata: dict[str, Any], words: str) -> dict[str, Any]:
    state = {"waiting": {"reason": "ImagePullBackOff", "message": words}}
    status = {"containerStatuses": [{"name": "c", "image": "i", "state": state}]}
    spec = {"containers": [{"image": world.session().deployment.image.reference}]}
    metadata = {"name": name, "namespace": world.session().names.namespace, **metadata}
    return world.cluster.put({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status})


@pytest.mark.parametrize(
    ("words", "status", "removed"),
    [
        ("401 Unauthorized", {}, True),
        ("429 Too Many Requests", {}, False),
        ("401 Unauthorized", {"state": "Ready", "pvc": "c"}, False),
        ("ended", {}, True),
    ],
)
def test_a_selection_pod_that_was_refused_is_tried_anew(
    world: World, words: str, status: dict[str, Any], removed: bool
) -> None:
    """The remedy says: clear apply_secrets and what follows. Then the wait must not end at once on the old refusal."""
    world.accepted()
    names = world.session().names
    ApplyCacheOperator(task_id="apply_cache").run(world.stage("apply_cache"))
    cache = world.cluster.get("", "NIMCache", names.namespace, names.cache)
    assert cache is not None
    cache["status"] = status
    pod = backing_off(world, names.selection_pod, owned_by(cache), f"unexpected status: {words}")
    if words == "ended":
        pod["status"] = {"phase": "Failed"}
    facts = ApplyCacheOperator(task_id="apply_cache").run(world.stage("apply_cache", 2))
    assert facts["cleared"] == ([f"Pod/{names.selection_pod}"] if removed else [])
    assert (f"delete Pod/{names.selection_pod}" in world.cluster.log) is removed


@pytest.mark.parametrize(("words", "removed"), [("403 Forbidden", True), ("503 Service Unavailable", False)])
def test_a_services_pod_that_is_refused_is_tried_anew(world: World, words: str, removed: bool) -> None:
    world.accepted()
    service = world.session().names.service
    ApplyServiceOperator(task_id="apply_service").run(world.stage("apply_service"))
    backing_off(world, "pod-1", {"labels": {"app": service}}, f"unexpected status: {words}")
    backing_off(world, "other", {"labels": {"app": f"{service}-2"}}, f"unexpected status: {words}")
    facts = ApplyServiceOperator(task_id="apply_service").run(world.stage("apply_service", 2))
    assert facts["cleared"] == (["Pod/pod-1"] if removed else [])
    assert "delete Pod/other" not in world.cluster.log


@pytest.mark.parametrize(
    ("state", "failed", "removed"), [("Ready", 1, True), ("Failed", 1, False), ("Ready", 0, False)]
)
def test_a_download_that_needed_a_retry_is_settled(world: World, state: str, failed: int, removed: bool) -> None:
    world.accepted()
    names = world.session().names
    ApplyCacheOperator(task_id="apply_cache").run(world.stage("apply_cache"))
    world.cluster.get("", "NIMCache", names.namespace, names.cache)["status"] = {"state": state}
    world.cluster.put(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": names.cache_job, "namespace": names.namespace},
            "status": {"failed": failed, "conditions": [{"type": "Complete", "status": "True"}]},
        }
    )
    ApplyServiceOperator(task_id="apply_service").run(world.stage("apply_service"))
    assert (f"delete Job/{names.cache_job}" in world.cluster.log) is removed


@pytest.mark.parametrize("answers", [True, False])
def test_a_filled_cache_that_says_failed_is_nudged_and_then_settled(
    world: World, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    """Else its service would not be started until the Job's time to live is over."""
    world.accepted()
    names = world.session().names
    ApplyCacheOperator(task_id="apply_cache").run(world.stage("apply_cache"))
    cache = world.cluster.get("", "NIMCache", names.namespace, names.cache)
    cache["status"] = {"state": "Failed", "pvc": names.cache_pvc}
    world.cluster.put(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": names.cache_pvc, "namespace": names.namespace},
        }
    )
    world.cluster.put(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": names.cache_job, "namespace": names.namespace},
            "status": {"failed": 1, "conditions": [{"type": "Complete", "status": "True"}]},
        }
    )

    def operator(seconds: float) -> None:
        live = world.cluster.get("", "PersistentVolumeClaim", names.namespace, names.cache_pvc)
        if answers and NUDGED in (live["metadata"].get("annotations") or {}):
            world.cluster.get("", "NIMCache", names.namespace, names.cache)["status"]["state"] = "Ready"

    monkeypatch.setattr("time.sleep", operator)
    ApplyServiceOperator(task_id="apply_service").run(world.stage("apply_service"))
    log = [line for line in world.cluster.log if "PersistentVolumeClaim" in line or f"Job/{names.cache_job}" in line]
    nudge = f"patch PersistentVolumeClaim/{names.cache_pvc}"
    assert log == ([nudge, f"delete Job/{names.cache_job}"] if answers else [nudge] * 2)
    assert f"apply NIMService/{names.service}" in world.cluster.log, "the service is applied either way"


def test_the_key_goes_into_the_secrets_and_nowhere_else(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "nvapi-canary-0123456789"
    monkeypatch.setattr("nim_rollouts.hooks.ngc.ngc_key", lambda environment: key)
    world.accepted()
    operator = ApplySecretsOperator(task_id="apply_secrets")
    world.prepared(operator, monkeypatch)
    operator.execute(world.context("apply_secrets"))
    assert len([one for one in world.cluster.objects if one[0] == "Secret"]) == 2
    store = world.session().store
    written = b"".join(store.get(name) or b"" for name in store.list(""))
    told = repr(world.events) + caplog.text
    assert b"canary" not in written and "canary" not in told


def test_the_platform_needs_the_file_system(world: World) -> None:
    world.accepted()
    ledger = world.session().ledger
    ledger.record("terraform_outputs", 1, "result", {"outputs": {}})
    with pytest.raises(PlatformNotReady, match="efs_file_system_id"):
        ApplyPlatformOperator(task_id="apply_platform").run(world.stage("apply_platform"))
    ledger.record("terraform_outputs", 2, "result", {"outputs": {"efs_file_system_id": "fs-1"}})
    ApplyPlatformOperator(task_id="apply_platform").run(world.stage("apply_platform"))
    assert world.cluster.get("", "StorageClass", None, "efs-sc-dynamic")["parameters"]["fileSystemId"] == "fs-1"


def test_what_the_api_server_would_refuse_later_is_refused_now(world: World) -> None:
    world.accepted()
    world.platform()
    world.cluster.rejects = {"NIMService": "unknown field spec.x", "Job": "no"}
    with pytest.raises(ApplyRejected, match="unknown field spec.x.*Job"):
        VerifyPlatformOperator(task_id="verify_platform").run(world.stage("verify_platform"))
    assert world.cluster.log == []


def test_a_verified_platform_lets_the_next_deployment_begin(world: World) -> None:
    from nim_rollouts.clients import claims

    world.accepted()
    world.platform()
    VerifyPlatformOperator(task_id="verify_platform").run(world.stage("verify_platform"))
    store = world.session().store
    assert claims.held_by(store, claims.environment_scope("test")) is None
    assert claims.held_by(store, claims.deployment_scope("test", DEPLOYMENT)) is not None


def gate(world: World) -> dict[str, Any]:
    return GateOperator(task_id="gate", successes=3, interval_s=0).run(world.stage("gate"))


def test_the_gate_wants_a_row_of_answers(serving: World) -> None:
    pod(serving)
    serving.cluster.answers = answering(200, 200, PortForwardFailed("broken"))
    assert gate(serving)["pods"][0]["probes"] == 6, "a broken tunnel begins the row anew"


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (answering(200, 503), "not-ready"),
        (answering(*[PortForwardFailed("broken")] * 12), "unsteady"),
        (answering(models="another/model"), "wrong-model"),
    ],
)
def test_the_gate_refuses(serving: World, answers: Any, reason: str) -> None:
    pod(serving)
    serving.cluster.answers = answers
    with pytest.raises(GateFailed) as refused:
        gate(serving)
    assert refused.value.reason == reason


def test_what_could_not_be_measured_is_no_judgement(serving: World) -> None:
    pod(serving)
    serving.cluster.answers = answering(*[TunnelFailed("no tunnel")] * 12)
    with pytest.raises(GateUnmeasured) as unknown:
        gate(serving)
    assert is_retryable(unknown.value)
    assert unknown.value.reason == "gate-unmeasured"
    serving.cluster.answers = answering(*[TunnelFailed("no tunnel"), PortForwardFailed("reset")] * 6)
    with pytest.raises(GateFailed) as bad:
        gate(serving)
    assert bad.value.reason == "unsteady", "the pod was asked, and did not answer"


def test_a_way_that_breaks_again_and_again_is_no_flap_of_the_pod(serving: World) -> None:
    """Whenever it could be asked it was ready."""
    pod(serving)
    serving.cluster.answers = answering(*[200, TunnelFailed("no tunnel")] * 6)
    with pytest.raises(GateUnmeasured):
        gate(serving)


def silent_on(path: str, *, on_the_way: bool) -> Any:
    """A pod that answers everything but one path; or one that cannot be reached any more once it is asked for that."""
    reached = [True]

    def request(method: str, asked: str, body: Any = None, **_: Any) -> Response:
        if asked == path:
            reached[0] = not on_the_way
            raise PortForwardFailed("the time is up")
        if not reached[0]:
            raise TunnelFailed("no tunnel")
        return answering()(method, asked, body)  # type: ignore[no-any-return]

    return request


@pytest.mark.parametrize(
    ("on_the_way", "error", "reason"),
    [(False, GateFailed, "model-endpoint-unavailable"), (True, GateUnmeasured, "gate-unmeasured")],
)
def test_a_silent_endpoint_is_told_from_a_broken_way(
    serving: World, on_the_way: bool, error: type[NimRolloutsError], reason: str
) -> None:
    pod(serving)
    serving.cluster.answers = silent_on("/v1/models", on_the_way=on_the_way)
    with pytest.raises(error) as raised:
        gate(serving)
    assert raised.value.reason == reason
    assert is_retryable(raised.value) is on_the_way


@pytest.mark.parametrize(
    ("on_the_way", "error", "reason"),
    [(False, SmokeTestFailed, "completion-unanswered"), (True, GateUnmeasured, "gate-unmeasured")],
)
def test_a_silent_model_is_told_from_a_broken_way(
    serving: World, on_the_way: bool, error: type[NimRolloutsError], reason: str
) -> None:
    pod(serving)
    serving.cluster.answers = silent_on("/v1/chat/completions", on_the_way=on_the_way)
    with pytest.raises(error) as raised:
        SmokeTestOperator(task_id="smoke_test").run(serving.stage("smoke_test"))
    assert raised.value.reason == reason
    assert is_retryable(raised.value) is on_the_way


def test_a_flap_is_a_bad_measure_not_a_bad_measuring(serving: World) -> None:
    pod(serving)
    serving.cluster.answers = answering(200, TunnelFailed("no tunnel"), 200, 503)
    with pytest.raises(GateFailed) as bad:
        gate(serving)
    assert (bad.value.reason, is_retryable(bad.value)) == ("not-ready", False)


def test_the_gate_wants_every_replica(serving: World) -> None:
    with pytest.raises(GateFailed, match="0 of 1"):
        gate(serving)


def test_a_restart_in_this_rollout_is_refused_an_old_one_is_history(serving: World) -> None:
    pod(serving, restarts=1, ended="2020-01-01T00:00:00Z")
    serving.cluster.answers = answering()
    gate(serving)
    pod(serving, restarts=2, ended="2999-01-01T00:00:00Z")
    with pytest.raises(GateFailed, match="OOMKilled"):
        gate(serving)


def test_a_restart_while_it_is_probed_is_refused(serving: World) -> None:
    old = pod(serving)
    plain = answering()

    def request(method: str, path: str, body: Any = None, **_: Any) -> Response:
        old["status"] = {"containerStatuses": [{"restartCount": 0}]}
        serving.cluster.put({**old, "status": {"containerStatuses": [{"restartCount": 1}]}})
        return plain(method, path, body)

    serving.cluster.answers = request
    with pytest.raises(GateFailed, match="restarted or replaced"):
        gate(serving)


def test_the_smoke_test_asks_the_deployments_model(serving: World) -> None:
    pod(serving)
    asked = []

    def request(method: str, path: str, body: Any = None, **_: Any) -> Response:
        asked.append((path, body["model"]))
        return Response(
            200, {}, b'{"choices": [{"message": {"content": "Mercury"}}], "usage": {"completion_tokens": 1}}'
        )

    serving.cluster.answers = request
    facts = SmokeTestOperator(task_id="smoke_test").run(serving.stage("smoke_test"))
    assert asked == [("/v1/chat/completions", MODEL)]
    assert facts["completion_tokens"] == 1


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, "{}", "completion-refused"),
        (200, "<html>", "completion-malformed"),
        (200, '{"choices": []}', "completion-malformed"),
        (200, '{"choices": [{"message": {"content": "hi"}}]}', "completion-malformed"),
        (200, '{"choices": [{"message": {"content": " "}}], "usage": {"completion_tokens": 3}}', "completion-empty"),
        (200, '{"choices": [{"message": {"content": null}}], "usage": {"completion_tokens": 3}}', "completion-empty"),
    ],
)
def test_an_answer_that_is_none_fails_the_smoke_test(status: int, body: str, reason: str) -> None:
    with pytest.raises(SmokeTestFailed) as refused:
        check_completion(Response(status, {}, body.encode()))
    assert refused.value.reason == reason


def test_a_namespace_of_somebody_else_is_used_and_not_marked_for_deletion(world: World) -> None:
    world.accepted()
    world.session().ledger.record("terraform_outputs", 1, "result", {"outputs": {"efs_file_system_id": "fs-1"}})
    world.cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "nim-service", "labels": {}}})
    facts = ApplyPlatformOperator(task_id="apply_platform").run(world.stage("apply_platform"))
    assert [one["kind"] for one in facts["applied"]] == ["StorageClass"]
    assert world.cluster.get("v1", "Namespace", None, "nim-service")["metadata"]["labels"] == {}


def test_a_storage_class_of_somebody_else_is_used_where_it_says_the_same_and_not_marked(world: World) -> None:
    world.accepted()
    world.session().ledger.record("terraform_outputs", 1, "result", {"outputs": {"efs_file_system_id": "fs-1"}})
    ApplyPlatformOperator(task_id="apply_platform").run(world.stage("apply_platform"))
    theirs = world.cluster.get("storage.k8s.io/v1", "StorageClass", None, "efs-sc-dynamic")
    assert theirs is not None
    theirs["metadata"]["labels"] = {}
    world.cluster.put(theirs)
    world.cluster.log.clear()
    facts = ApplyPlatformOperator(task_id="apply_platform").run(world.stage("apply_platform"))
    assert "StorageClass" not in [one["kind"] for one in facts["applied"]]
    assert "apply StorageClass/efs-sc-dynamic" not in world.cluster.log
    assert facts["used_as_it_is"] == [{"kind": "StorageClass", "name": "efs-sc-dynamic", "differs": []}]


def test_what_ours_would_add_to_somebody_elses_object_is_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A foreign class without our parameters passes a dry run, which would only add them."""
    world.accepted()
    world.session().ledger.record("terraform_outputs", 1, "result", {"outputs": {"efs_file_system_id": "fs-1"}})
    ApplyPlatformOperator(task_id="apply_platform").run(world.stage("apply_platform"))
    theirs = world.cluster.get("storage.k8s.io/v1", "StorageClass", None, "efs-sc-dynamic")
    assert theirs is not None
    theirs["metadata"]["labels"] = {}
    del theirs["parameters"]["directoryPerms"], theirs["mountOptions"]
    world.cluster.put(theirs)
    facts = ApplyPlatformOperator(task_id="apply_platform").run(world.stage("apply_platform"))
    assert facts["used_as_it_is"] == [
        {"kind": "StorageClass", "name": "efs-sc-dynamic", "differs": ["mountOptions", "parameters.directoryPerms"]}
    ]
    told = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert told == [
        "StorageClass/efs-sc-dynamic differs from what we would apply, in mountOptions, parameters.directoryPerms"
    ]
    live = world.cluster.get("storage.k8s.io/v1", "StorageClass", None, "efs-sc-dynamic")
    assert live is not None and "mountOptions" not in live
