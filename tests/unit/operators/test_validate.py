"""Bad input is refused before anything is made, with all that is wrong in one answer."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from nim_rollouts.clients import claims
from nim_rollouts.clients.ngc import Digest
from nim_rollouts.core.errors import (
    ClaimHeld,
    GpuFit,
    NeedsHumanError,
    NgcImageNotFound,
    NgcKeyError,
    NgcUnavailable,
    NimRolloutsError,
    SpecError,
    Superseded,
    ToolMissing,
    UnknownDeployment,
    UnknownEnvironment,
)
from nim_rollouts.operators.teardown import ValidateTeardownOperator
from nim_rollouts.operators.validate import Problems, ValidateOperator
from tests.unit.operators.conftest import DEPLOYMENT, ENVIRONMENT, World


@pytest.fixture
def fine(world: World, monkeypatch: pytest.MonkeyPatch) -> ValidateOperator:
    """A request that would be accepted: the key is good, the image is there, the tools are too."""
    operator = ValidateOperator(task_id="validate")
    world.prepared(operator, monkeypatch)
    operator.image_tag, operator.strategy, operator.skip_benchmark = "", "replace", "False"
    monkeypatch.setattr("nim_rollouts.clients.include.Include", lambda: world.include)
    monkeypatch.setattr(
        "nim_rollouts.operators.validate._ngc", lambda session, deployment: {"image_digest": "sha256:1"}
    )
    monkeypatch.setattr("nim_rollouts.operators.validate._benchmark_image", lambda session, deployment: {})
    monkeypatch.setattr("nim_rollouts.hooks.runs.is_ended", lambda holder: False)
    _tools_are_there(monkeypatch)
    return operator


def _tools_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nim_rollouts.clients.terraform.Terraform.binary", lambda self: "/bin/terraform")
    monkeypatch.setattr("nim_rollouts.clients.helm.find_binary", lambda: "/bin/helm")


def claimed(world: World) -> list[str]:
    return [key for key in world.session().store.list("") if key.startswith("claims/")]


def test_a_good_request_is_written_down_with_its_generations(world: World, fine: ValidateOperator) -> None:
    assert fine.execute(world.context("validate")) == ["nim-operator"]
    request = world.session().request
    assert (request.generation, request.environment_generation, request.triggered_by) == (1, 1, "ada")
    assert request.spec == world.include.deployment(DEPLOYMENT)
    assert [claim.scope for claim in world.session().claims()] == [
        "claims/test/_environment.json",
        f"claims/test/{DEPLOYMENT}.json",
    ]


def test_a_cleared_validation_keeps_its_generation(world: World, fine: ValidateOperator) -> None:
    for number in (1, 2):
        fine.execute(world.context("validate", number))
    assert world.session().request.generation == 1


def test_an_image_tag_of_the_form_goes_into_the_request(world: World, fine: ValidateOperator) -> None:
    fine.image_tag = "1.8.4"
    fine.execute(world.context("validate"))
    assert world.session().deployment.image.tag == "1.8.4"


def test_both_unknown_names_are_told_at_once(world: World, fine: ValidateOperator) -> None:
    fine.environment, fine.deployment = "nowhere", "nothing"
    with pytest.raises(SpecError) as refused:
        fine.execute(world.context("validate"))
    assert "nowhere" in str(refused.value) and "nothing" in str(refused.value)
    assert DEPLOYMENT in str(refused.value), "the known ones are listed"
    assert world.session().store.list("") == []


@pytest.mark.parametrize(("field", "error"), [("environment", UnknownEnvironment), ("deployment", UnknownDeployment)])
def test_an_unknown_name_is_its_own_error(world: World, fine: ValidateOperator, field: str, error: type) -> None:
    setattr(fine, field, "../../etc/passwd")
    with pytest.raises(error):
        fine.execute(world.context("validate"))
    assert world.session().store.list("") == []


def _refusing(error: NimRolloutsError) -> Any:
    def check(*_: Any) -> Any:
        raise error

    return check


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("nim_rollouts.operators.validate._cache_fit", GpuFit("no instance type can hold cache.resources")),
        ("nim_rollouts.operators.validate._benchmark_image", NgcImageNotFound("no such image")),
        ("nim_rollouts.operators.validate._ngc", NgcKeyError("the key does not begin with nvapi-")),
        ("nim_rollouts.operators.validate._ngc", NgcImageNotFound("no such tag")),
        ("nim_rollouts.operators.validate._gpu_fit", GpuFit("no instance type can hold it")),
        ("nim_rollouts.clients.terraform.Terraform.binary", ToolMissing("terraform is missing")),
        ("nim_rollouts.clients.helm.find_binary", ToolMissing("helm is missing")),
    ],
)
def test_each_problem_is_refused_and_nothing_is_claimed(
    world: World, fine: ValidateOperator, monkeypatch: pytest.MonkeyPatch, place: str, error: NimRolloutsError
) -> None:
    monkeypatch.setattr(place, _refusing(error))
    with pytest.raises(type(error)) as refused:
        fine.execute(world.context("validate"))
    assert refused.value is error
    assert claimed(world) == []
    assert world.session().ledger.read("validate", "request") is None


@pytest.mark.parametrize(
    ("node_os", "pools"), [("al2023", ["g5-gpu-karpenter"]), ("bottlerocket", ["g5-gpu-karpenter-al2023"])]
)
def test_gpu_nodes_of_another_system_are_refused(
    world: World, fine: ValidateOperator, node_os: str, pools: list[str]
) -> None:
    file = world.include.path("environments/test.yaml")
    file.write_text(file.read_text() + f"node_os: {node_os}\nnode_pools: {pools}\n")
    with pytest.raises(SpecError, match=f"node_os is {node_os}, but .*/{pools[0]}.yaml starts GPU nodes") as refused:
        fine.execute(world.context("validate"))
    assert refused.value.reason == "node-os-differs"
    assert claimed(world) == []


def test_all_problems_are_listed(world: World, fine: ValidateOperator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nim_rollouts.operators.validate._ngc", _refusing(NgcKeyError("bad key")))
    monkeypatch.setattr("nim_rollouts.clients.helm.find_binary", _refusing(ToolMissing("helm is missing")))
    fine.strategy = "blue"
    with pytest.raises(SpecError) as refused:
        fine.execute(world.context("validate"))
    assert len(refused.value.problems) == 3
    for text in ("bad key", "helm is missing", 'strategy "blue"'):
        assert text in str(refused.value)


def test_a_bad_tag_is_refused_before_the_registry_is_asked(world: World, fine: ValidateOperator) -> None:
    fine.image_tag = "no spaces allowed"
    with pytest.raises(SpecError, match="image_tag"):
        fine.execute(world.context("validate"))


def test_what_may_pass_is_retried_only_when_nothing_is_wrong_for_good() -> None:
    problems = Problems()
    problems.add(NgcUnavailable("429"))
    with pytest.raises(NgcUnavailable):
        problems.refuse(logging.getLogger("test"))
    problems.add(GpuFit("too large"))
    with pytest.raises(GpuFit):
        problems.refuse(logging.getLogger("test"))


def test_a_held_claim_is_refused_and_what_was_taken_is_given_back(world: World, fine: ValidateOperator) -> None:
    store = world.session().store
    other = claims.Holder("nim_deploy", "manual__other")
    claims.acquire(store, claims.deployment_scope(ENVIRONMENT, DEPLOYMENT), other, is_ended=lambda _: False)
    with pytest.raises(ClaimHeld, match="manual__other"):
        fine.execute(world.context("validate"))
    assert claims.held_by(store, claims.environment_scope(ENVIRONMENT)) is None
    assert claims.held_by(store, claims.deployment_scope(ENVIRONMENT, DEPLOYMENT)) == other


def test_a_refused_run_moves_no_generation(world: World, fine: ValidateOperator) -> None:
    """The running one could not clear its infrastructure tasks any more."""
    world.accepted(run_id="manual__other")
    session = world.session(run_id="manual__other")
    environment_claim, _ = session.claims()
    claims.release(session.store, environment_claim)
    with pytest.raises(ClaimHeld):
        fine.execute(world.context("validate"))
    claims.check(session.store, environment_claim)


def test_by_policy_a_run_waits_for_the_claim(
    world: World, fine: ValidateOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.accepted(run_id="manual__other")
    file = world.include.path("environments/test.yaml")
    file.write_text(file.read_text() + "policies: {claim: wait}\n")
    with pytest.raises(TaskDeferred) as waiting:
        fine.execute(world.context("validate"))
    assert waiting.value.method_name == "look_again"
    assert world.session().ledger.read("validate", "error") is None
    monkeypatch.setattr("nim_rollouts.hooks.runs.is_ended", lambda holder: True)
    assert fine.look_again(world.context("validate")) == ["nim-operator"]
    assert world.session().request.generation == 2


def test_an_older_run_is_refused(world: World, fine: ValidateOperator) -> None:
    fine.execute(world.context("validate"))
    world.accepted(run_id="manual__2")
    with pytest.raises(Superseded):
        fine.execute(world.context("validate", 2))


@pytest.mark.parametrize(
    ("deployment", "scope", "text"),
    [("", "deployment", "no deployment"), (DEPLOYMENT, "platform", "takes every deployment"), ("", "all", "neither")],
)
def test_a_teardown_that_contradicts_itself_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, deployment: str, scope: str, text: str
) -> None:
    operator = ValidateTeardownOperator(task_id="validate")
    world.prepared(operator, monkeypatch)
    operator.deployment, operator.scope, operator.confirm = deployment, scope, ENVIRONMENT
    with pytest.raises(SpecError, match=text):
        operator.execute(world.context("validate"))
    assert claimed(world) == []


@pytest.mark.parametrize(
    ("scope", "confirm", "protected", "reason"),
    [
        ("platform", "", False, "confirm-missing"),
        ("everything", "", False, "confirm-missing"),
        ("everything", "nvidia-nim-eks", False, "confirm-missing"),
        ("everything", ENVIRONMENT, True, "environment-protected"),
        ("platform", ENVIRONMENT, True, "environment-protected"),
        ("deployment", "", True, None),
        ("everything", ENVIRONMENT, False, None),
    ],
)
def test_more_than_one_deployment_wants_the_name_typed_and_no_protection(
    world: World, monkeypatch: pytest.MonkeyPatch, scope: str, confirm: str, protected: bool, reason: str | None
) -> None:
    _tools_are_there(monkeypatch)
    monkeypatch.setattr("nim_rollouts.hooks.runs.is_ended", lambda holder: False)
    file = world.include.root / "environments" / f"{ENVIRONMENT}.yaml"
    file.write_text(file.read_text() + f"policies: {{protected: {str(protected).lower()}}}\n")
    operator = ValidateTeardownOperator(task_id="validate")
    world.prepared(operator, monkeypatch)
    operator.deployment = DEPLOYMENT if scope == "deployment" else ""
    operator.scope, operator.confirm = scope, confirm
    if reason is None:
        operator.execute(world.context("validate"))
        assert claimed(world) != []
        return
    with pytest.raises(NeedsHumanError) as told:
        operator.execute(world.context("validate"))
    assert told.value.reason == reason
    assert claimed(world) == [], "refused before any claim"
    if protected:
        assert f"include/environments/{ENVIRONMENT}.yaml" in told.value.hint


@pytest.mark.parametrize("held", ["environment", "deployment"])
def test_a_teardown_does_not_begin_beside_a_live_run(world: World, monkeypatch: pytest.MonkeyPatch, held: str) -> None:
    _tools_are_there(monkeypatch)
    monkeypatch.setattr("nim_rollouts.hooks.runs.is_ended", lambda holder: False)
    store = world.session().store
    scope = {"environment": claims.environment_scope(ENVIRONMENT),
             "deployment": claims.deployment_scope(ENVIRONMENT, DEPLOYMENT)}[held]  # fmt: skip
    claims.acquire(store, scope, claims.Holder("nim_deploy", "manual__0"), is_ended=lambda _: False)
    operator = ValidateTeardownOperator(task_id="validate")
    world.prepared(operator, monkeypatch)
    operator.deployment, operator.scope, operator.confirm = "", "everything", ENVIRONMENT
    with pytest.raises(ClaimHeld, match="nim_deploy / manual__0"):
        operator.execute(world.context("validate"))
    assert [claims.held_by(store, key).run_id for key in claimed(world)] == ["manual__0"], "it took none of the others"


def test_a_teardown_without_its_tools_is_refused_before_anything_is_deleted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tools_are_there(monkeypatch)
    monkeypatch.setattr("nim_rollouts.clients.helm.find_binary", _refusing(ToolMissing("helm is missing")))
    operator = ValidateTeardownOperator(task_id="validate")
    world.prepared(operator, monkeypatch)
    operator.deployment, operator.scope, operator.confirm = "", "platform", ENVIRONMENT
    with pytest.raises(ToolMissing):
        operator.execute(world.context("validate"))
    assert claimed(world) == []


@pytest.mark.parametrize(
    ("image", "skip", "asked"),
    [("nvcr.io/nvidia/aiperf:1", False, 2), ("ghcr.io/me/aiperf:1", False, 1), ("nvcr.io/nvidia/aiperf:1", True, 1)],
)
def test_the_benchmarks_image_is_looked_up_where_it_can_be(
    world: World, fine: ValidateOperator, monkeypatch: pytest.MonkeyPatch, image: str, skip: bool, asked: int
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("nim_rollouts.operators.validate._capacity", lambda session, deployment: {})
    looked: list[str] = []

    def manifest(repository: str, tag: str) -> Digest:
        looked.append(f"{repository}:{tag}")
        return Digest(repository, "sha256:1")

    monkeypatch.setattr("nim_rollouts.clients.ngc.from_connection", lambda _: SimpleNamespace(manifest=manifest))
    monkeypatch.setattr("nim_rollouts.clients.include.Include", lambda: world.include)
    monkeypatch.setattr("nim_rollouts.hooks.runs.is_ended", lambda holder: False)
    _tools_are_there(monkeypatch)
    world.prepared(fine, monkeypatch)
    file = world.include.root / "deployments"
    text = (file / f"{DEPLOYMENT}.yaml").read_text()
    file.unlink()
    file.mkdir()
    (file / f"{DEPLOYMENT}.yaml").write_text(text.replace("nvcr.io/nvidia/aiperf:0.13.0", image))
    fine.skip_benchmark = str(skip)
    fine.execute(world.context("validate"))
    assert len(looked) == asked


def test_a_teardown_of_the_platform_claims_all_of_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _tools_are_there(monkeypatch)
    monkeypatch.setattr("nim_rollouts.hooks.runs.is_ended", lambda holder: False)
    store = world.session().store
    gone = claims.Holder("nim_deploy", "manual__0")
    forgotten = claims.acquire(store, claims.deployment_scope(ENVIRONMENT, "retired"), gone, is_ended=lambda _: True)
    claims.release(store, forgotten)
    operator = ValidateTeardownOperator(task_id="validate")
    world.prepared(operator, monkeypatch)
    operator.deployment, operator.scope, operator.confirm = "", "platform", ENVIRONMENT
    operator.execute(world.context("validate"))
    facts = world.session(deployment="").facts("validate")
    assert facts["deployments"]["retired"] == 2, "one whose file is gone is claimed too"
    assert DEPLOYMENT in facts["deployments"]
    assert claims.held_by(store, claims.environment_scope(ENVIRONMENT)) is not None


def test_of_several_that_do_not_answer_the_most_patient_one_is_told() -> None:
    """So that a Retry-After is honoured whichever of the two images met it."""
    problems = Problems()
    for error in (NgcUnavailable("away"), NgcUnavailable("slow down", retry_after_s=42)):
        problems.add(error)
    with pytest.raises(NgcUnavailable) as told:
        problems.refuse(logging.getLogger("test"))
    assert told.value.retry_after_s == 42
