"""The fault matrix, live: each fault leads to its layer and slug soon after its evidence, or to nothing at all.

Ordered at the stand-ins; the pipelines know nothing of it. The benchmark is left out: no fault here needs it. The
matrix is printed at the end of the session.
"""

from __future__ import annotations

import pytest

from nim_rollouts.core.environment import load_environment
from rehearsal import faults
from tests.rehearsal.disorder import (
    Case,
    cache_says,
    event,
    for_a_while,
    no_nodes,
    operator_down,
    play,
    pods_ready,
    remove_models,
    restarted,
    waiting,
)
from tests.rehearsal.live import ENVIRONMENT, ROOT, Live

pytestmark = pytest.mark.timeout(900)

IMAGE = "image=nvcr.io/nim/meta/llama-3.1-8b-instruct"
PULLS = ("ErrImagePull", "ImagePullBackOff")
BUDGETS = load_environment(
    ENVIRONMENT, (ROOT / "include" / "environments" / f"{ENVIRONMENT}.yaml").read_text(), ENVIRONMENT
).budgets
#: What comes after a step's budget: Airflow passes the event on, and a worker looks again.
SLACK_S = 25
NOT_FOLLOWING = r"\(not following: "


def _of(*words: str) -> frozenset[str]:
    return frozenset(words)


def _ngc(status: int, layer: str, reason: str, *more: str) -> Case:
    return Case(
        f"NGC answers {status}",
        orders=(("registry", IMAGE, f"status={status}", *more),),
        task="validate",
        layers=_of(layer),
        reasons=_of(reason),
        within_s=60 if status == 429 else 20,
        begins="",
    )


#: Told by AWS or NGC before anything is made. A limited rate is tried again first, as soon as NGC allows.
REFUSED = [
    Case(
        "the account's quota of GPU vCPUs is too small",
        orders=(("few-vcpus", "value=40"),),
        task="validate",
        layers=_of("quota"),
        reasons=_of("vcpu-quota"),
        within_s=20,
        begins="",
    ),
    _ngc(401, "ngc-auth", "ngc-key-refused"),
    _ngc(402, "entitlement", "ngc-not-entitled"),
    _ngc(403, "entitlement", "ngc-key-forbidden"),
    _ngc(404, "ngc", "ngc-image-not-found"),
    _ngc(429, "rate-limit", "ngc-rate-limited", "retry_after_s=1"),
]
SHORT = [
    Case(
        "no profile matches",
        orders=(("no-profile",),),
        task="wait_cache",
        layers=_of("profile"),
        reasons=_of("no-matching-profile"),
        evidence=cache_says("no profiles are selected"),
    ),
]
#: What cannot pass by itself ends the wait; what may is told as soon, and ends it with the budget of its step.
LASTING = [
    Case(
        "the service's image cannot be pulled",
        orders=(("pull-refused", "pods=service", "status=401"),),
        task="wait_service",
        layers=_of("ngc-auth"),
        reasons=_of("image-pull-unauthorized"),
        evidence=waiting(*PULLS),
    ),
    Case(
        "the cache's image is not there",
        orders=(("pull-refused", "pods=cache", "status=404"),),
        task="wait_cache",
        layers=_of("image-pull"),
        reasons=_of("image-pull-not-found"),
        evidence=waiting(*PULLS),
    ),
    Case(
        "no GPU capacity",
        orders=(("no-capacity",),),
        task="wait_cache",
        layers=_of("capacity"),
        reasons=_of("unschedulable-gpu", "unschedulable"),
        evidence=event("FailedScheduling", "required offering"),
        within_s=BUDGETS.node_launch_s + SLACK_S,
        first=no_nodes,
    ),
    Case(
        "the claim is not bound",
        orders=(("claim-unbound",),),
        task="wait_cache",
        layers=_of("volume"),
        reasons=_of("volume-unbound"),
        evidence=event("ProvisioningFailed"),
        within_s=BUDGETS.bind_s + SLACK_S,
    ),
    Case(
        "nobody may write into a volume",
        orders=(("volume-not-writable",),),
        task="verify_platform",
        layers=_of("volume"),
        reasons=_of("storage-not-writable"),
        within_s=60,
        begins="apply_platform",
    ),
    Case(
        "out of memory",
        orders=(("crash-loop", "after_s=3"),),
        task="wait_service",
        layers=_of("memory"),
        reasons=_of("crash-loop-oom"),
        evidence=waiting("CrashLoopBackOff"),
    ),
    Case(
        "health flaps",
        orders=(("health-flaps", "up_s=3", "down_s=2"),),
        task="gate",
        layers=_of("gate"),
        reasons=_of("unsteady", "not-ready"),
        told_s=30,
        within_s=30,
    ),
    Case(
        "the model endpoint answers 500",
        orders=(("models-endpoint", "status=500"),),
        task="wait_service",
        layers=_of("model-endpoint"),
        reasons=_of("model-endpoint-unavailable"),
        evidence=pods_ready,
        within_s=BUDGETS.endpoint_s + SLACK_S,
    ),
    Case(
        "the operator is away",
        orders=(("operator-away",),),
        task="wait_platform",
        layers=_of("operator"),
        reasons=_of("crash-loop"),
        evidence=operator_down,
        within_s=75 + SLACK_S,
        begins="wait_platform",
    ),
]
#: What passes, and the rollout is promoted. Two of a case lie in different waits.
PASSING = [
    Case(
        "the operator away for a while, a Job that fails twice; a slow start",
        orders=(("cache-job-fails", "pods=2"), ("slow-start", "start_s=25")),
        meanwhile=(("wait_cache", for_a_while(12, "operator-away")),),
        says=(
            ("wait_cache", r"\(operator, operator-unavailable\)"),
            ("wait_cache", r"2 download pods failed, the Job makes up to \d"),
            ("wait_service", r"\(probe-budget, startup-probe-failing\)"),
        ),
    ),
    Case(
        "a storm of 429; a storm of 500",
        meanwhile=(
            ("wait_cache", for_a_while(10, "error-storm", "status=429")),
            ("wait_service", for_a_while(10, "error-storm", "status=500")),
        ),
        says=(
            ("wait_cache", NOT_FOLLOWING),
            ("wait_service", NOT_FOLLOWING),
        ),
    ),
    Case(
        "the API server is away; the watch is cut",
        meanwhile=(
            ("wait_cache", restarted("kube-apiserver", 10)),
            ("wait_service", for_a_while(12, "watch-cut", "every_s=2")),
        ),
        says=(("wait_cache", NOT_FOLLOWING),),
    ),
]


def _params() -> list[object]:
    def slow(cases: list[Case]) -> list[object]:
        return [pytest.param(one, id=one.name, marks=[pytest.mark.live(order=70), pytest.mark.slow]) for one in cases]

    # Those that have runs of their own come first: the others clear one and the same run, which must be the newest.
    short = [pytest.param(case, id=case.name, marks=pytest.mark.live(order=70)) for case in SHORT]
    return [*slow(REFUSED), *short, *slow(LASTING), *slow(PASSING)]


@pytest.mark.parametrize("case", _params())
def test_fault(live: Live, case: Case) -> None:
    remove_models(live)
    outcome = play(live, case)
    print(f"{case.name}: {outcome}")
    told = "\n".join([str(outcome), *outcome.notes, *outcome.run.lines])
    assert outcome.unsaid == [], told
    if not case.task:
        assert outcome.run.state == "success", told
        return
    assert outcome.run.state == "failed", told
    failed = {name for name, task in outcome.run.tasks.items() if task.state == "failed"}
    assert case.task in failed, told
    assert outcome.reason in case.reasons, told
    assert outcome.layer in case.layers, told
    assert outcome.told_after is not None and outcome.told_after <= case.told_s, (outcome.told_after, told)
    assert outcome.ended_after is not None and outcome.ended_after <= case.within_s, (outcome.ended_after, told)


def test_the_document_says_what_the_matrix_asserts() -> None:
    rows = [row.split("|") for row in (ROOT / "docs" / "rehearsal.md").read_text().splitlines()]
    told = {row[1].strip(" `").split()[0]: row[4] for row in rows if len(row) == 6 and "`" in row[1]}
    for case in [*REFUSED, *SHORT, *LASTING]:
        said = told[case.orders[0][0]]
        assert any(layer in said for layer in case.layers), case.name
        assert any(f"`{reason}`" in said for reason in case.reasons), case.name
    assert not [order[0] for case in PASSING for order in case.orders if told[order[0]].strip()]


def test_every_fault_of_the_catalogue_is_in_the_matrix_or_has_a_test_of_its_own() -> None:
    played = {order[0] for case in [*REFUSED, *SHORT, *LASTING, *PASSING] for order in case.orders}
    # The benchmark's errors need a benchmark: test_main_job plays them. The last two are ordered while a wait goes on.
    elsewhere = {"benchmark-errors", "error-storm", "watch-cut"}
    assert played | elsewhere == set(faults.CATALOGUE)
