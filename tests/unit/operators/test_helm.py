"""The Helm operators: what they ask of the client, what they record, and the Secrets that go before a release."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from nim_rollouts.clients.helm import HelmResult, HelmStatus
from nim_rollouts.core.errors import AccessDenied, NeedsHumanError, NimRolloutsError, PlatformNotReady
from nim_rollouts.operators import helm
from tests.unit.operators.conftest import World

PASSWORD = "canary-aB3xGrafana9Zq0123456789abcd"
DIGEST = "sha256:" + "a" * 64


class Recorder:
    """Stands in the client's place."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.foreign = False

    def own(self, addon: Any) -> HelmStatus | None:
        if self.foreign:
            raise NeedsHumanError("somebody else's", reason="release-foreign")
        return None

    def upgrade_install(self, addon: Any, **given: Any) -> HelmResult:
        self.world.cluster.log.append(f"helm upgrade {addon.name}")
        self.calls.append(("upgrade", given))
        return HelmResult(True, 1, "deployed", DIGEST, "3.1.2")

    def rollback(self, addon: Any, **given: Any) -> HelmStatus:
        self.calls.append(("rollback", given))
        return HelmStatus(4, "deployed", "aaaa", "bbbb")

    def history(self, addon: Any) -> list[HelmStatus]:
        return [HelmStatus(1, "superseded", "aaaa", "x"), HelmStatus(2, "deployed", "bbbb", "y")]


@pytest.fixture
def recorder(world: World, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    world.accepted()
    made = Recorder(world)
    monkeypatch.setattr("nim_rollouts.clients.helm.Helm", lambda cluster, include: made)
    return made


def run(world: World, monkeypatch: pytest.MonkeyPatch, operator: Any) -> dict[str, Any]:
    world.prepared(operator, monkeypatch)
    operator.execute(world.context(operator.task_id))
    facts = world.session().ledger.read(operator.stage_name, "result")
    assert facts is not None
    return facts


def with_addon(world: World, **changes: Any) -> None:
    """The test's environment with its one add-on changed."""
    path = world.include.path("environments/test.yaml")
    text = path.read_text()
    start = text.index("  - {name: nim-operator")
    end = text.index("\n", start)
    one = {"name": "nim-operator", "namespace": "nim-operator", "chart": "charts/operator", **changes}
    path.write_text(text[:start] + "  - " + json.dumps(one) + text[end:])


def outputs(world: World, **given: Any) -> None:
    world.session().ledger.record("terraform_outputs", 1, "result", {"outputs": given})


class Secrets:
    """Secrets Manager through its hook."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.masked: list[str] = []

        def hook(aws_conn_id: str, region_name: str) -> Any:
            def get_secret(name: str) -> Any:
                self.asked.append((aws_conn_id, region_name, name))
                if isinstance(answer, Exception):
                    raise answer
                return answer

            return SimpleNamespace(get_secret=get_secret)

        monkeypatch.setattr("airflow.providers.amazon.aws.hooks.secrets_manager.SecretsManagerHook", hook)
        monkeypatch.setattr("airflow.sdk.log.mask_secret", self.masked.append)


GRAFANA = {
    "name": "g",
    "key": "admin-password",
    "from_output": "grafana_secret_name",
    "literals": {"admin-user": "admin"},
}


def test_the_secret_is_there_before_the_release_and_in_no_record(
    world: World, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_addon(world, secrets=[GRAFANA])
    outputs(world, grafana_secret_name="c/grafana")
    aws = Secrets(monkeypatch, PASSWORD)
    facts = run(world, monkeypatch, helm.HelmReleaseOperator(task_id="install_addon", addon="nim-operator"))
    assert aws.asked == [("aws_default", "us-west-2", "c/grafana")]
    encoded = base64.b64encode(PASSWORD.encode()).decode()
    assert aws.masked == [PASSWORD, encoded]
    assert world.cluster.log == ["apply Namespace/nim-operator", "apply Secret/g", "helm upgrade nim-operator"]
    secret = world.cluster.objects["Secret", "nim-operator", "g"]
    assert secret["data"] == {"admin-password": encoded, "admin-user": base64.b64encode(b"admin").decode()}
    assert facts["chart_digest"] == DIGEST and [one["name"] for one in facts["secrets"]] == ["g"]
    stored = "".join(json.dumps(one.facts) for one in world.session().ledger.records())
    events = json.dumps([event.extra for event in world.events.values()], default=str)
    for text in (stored, events, caplog.text):
        assert PASSWORD not in text and encoded not in text


def test_the_outputs_go_to_helm(world: World, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    with_addon(world, values_from={"a.b": "cluster_name"})
    outputs(world, cluster_name="c")
    facts = run(world, monkeypatch, helm.HelmReleaseOperator(task_id="install_addon", addon="nim-operator"))
    assert recorder.calls == [("upgrade", {"outputs": {"cluster_name": "c"}})]
    assert (facts["changed"], facts["chart_version"]) == (True, "3.1.2")


def test_without_need_of_outputs_none_are_asked_for(
    world: World, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(world, monkeypatch, helm.HelmReleaseOperator(task_id="install_addon", addon="nim-operator"))
    assert recorder.calls == [("upgrade", {"outputs": {}})]


def _refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "no"}}, "GetSecretValue")


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        (_refusal("AccessDeniedException"), AccessDenied, "access-denied"),
        (_refusal("ResourceNotFoundException"), PlatformNotReady, "secret-missing"),
        ("", PlatformNotReady, "secret-missing"),
    ],
)
def test_a_secret_that_cannot_be_had_stops_before_the_release(
    world: World,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    answer: Any,
    error: type[NimRolloutsError],
    reason: str,
) -> None:
    with_addon(world, secrets=[GRAFANA])
    outputs(world, grafana_secret_name="c/grafana")
    Secrets(monkeypatch, answer)
    operator = helm.HelmReleaseOperator(task_id="install_addon", addon="nim-operator")
    world.prepared(operator, monkeypatch)
    with pytest.raises(error) as caught:
        operator.execute(world.context("install_addon"))
    assert caught.value.reason == reason
    assert recorder.calls == [] and world.cluster.log == []


def test_a_release_of_somebody_else_is_refused_before_its_secrets_are_filled(
    world: World, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_addon(world, secrets=[GRAFANA])
    outputs(world, grafana_secret_name="c/grafana")
    aws = Secrets(monkeypatch, PASSWORD)
    recorder.foreign = True
    operator = helm.HelmReleaseOperator(task_id="install_addon", addon="nim-operator")
    world.prepared(operator, monkeypatch)
    with pytest.raises(NeedsHumanError) as caught:
        operator.execute(world.context("install_addon"))
    assert caught.value.reason == "release-foreign"
    assert recorder.calls == [] and world.cluster.log == [] and aws.asked == []


def test_an_add_on_that_is_gone_from_the_file(
    world: World, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = helm.HelmReleaseOperator(task_id="install_addon", addon="gone")
    world.prepared(operator, monkeypatch)
    with pytest.raises(PlatformNotReady, match="no add-on gone any more"):
        operator.execute(world.context("install_addon"))


@pytest.mark.parametrize(("revision", "to"), [("", None), ("2", 2)])
def test_rolling_back(
    world: World, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, revision: str, to: int | None
) -> None:
    operator = helm.HelmRollbackOperator(task_id="roll_back", addon="nim-operator", revision=revision)
    facts = run(world, monkeypatch, operator)
    assert recorder.calls == [("rollback", {"to": to})]
    assert facts["revision"] == 4


def test_the_state_is_told(world: World, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = run(world, monkeypatch, helm.HelmStatusOperator(task_id="status", addon="nim-operator"))
    assert (facts["installed"], facts["status"]) == (True, "deployed")
    assert [one["revision"] for one in facts["revisions"]] == [1, 2]
    monkeypatch.setattr(recorder, "history", lambda addon: [])
    facts = run(world, monkeypatch, helm.HelmStatusOperator(task_id="status", addon="nim-operator"))
    assert (facts["installed"], facts["status"], facts["revisions"]) == (False, None, [])


def test_uninstalling(world: World, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, no_waiting: None) -> None:
    """The order is `helm_crds.remove`'s; the operator brings its waiting and its claims."""
    asked: dict[str, Any] = {}
    going = {"kind": "X", "metadata": {"name": "x", "uid": "1"}}

    def remove(cluster: Any, client: Any, addon: Any, *, wait_s: float, gone: Any, check: Any) -> dict[str, Any]:
        asked.update(cluster=cluster, client=client, addon=addon.name, wait_s=wait_s)
        gone([going])
        check()
        return {"uninstalled": True, "crds": ["a"]}

    monkeypatch.setattr("nim_rollouts.clients.helm_crds.remove", remove)
    facts = run(world, monkeypatch, helm.HelmUninstallOperator(task_id="uninstall", addon="nim-operator"))
    assert facts == {"addon": "nim-operator", "uninstalled": True, "crds": ["a"]}
    assert asked == {"cluster": world.cluster, "client": recorder, "addon": "nim-operator", "wait_s": 5}
    assert world.cluster.log == ["gone X/x"]
