"""The fault matrix, live: each fault leads to its layer and slug soon after its evidence, or to nothing at all.

Ordered at the stand-ins; the pipelines know nothing of it. The benchmark is left out: no fault here needs it.
"""

from __future__ import annotations

import pytest

from rehearsal import faults
from tests.rehearsal.disorder import (
    Case,
    cache_says,
    event,
    for_a_while,
    operator_down,
    play,
    pods_ready,
    remove_models,
    restarted,
    waiting,
)
from tests.rehearsal.live import Live

pytestmark = pytest.mark.timeout(900)

IMAGE = "image=nvcr.io/nim/meta/llama-3.1-8b-instruct"
PULLS = ("ErrImagePull", "ImagePullBackOff")
#: `budgets.node_launch_s` of the rehearsal's environment.
NODE_LAUNCH_S = 60.0


def _of(*words: str) -> frozenset[str]:
    return frozenset(words)


def _ngc(status: int, layer: str, *reasons: str) -> Case:
    return Case(
        f"ngc-{status}",
        orders=(("registry", IMAGE, f"status={status}"),),
        task="validate",
        layers=_of(layer, "ngc"),
        reasons=_of(*reasons),
        within_s=60 if status == 429 else 30,
    )


#: Told by NGC before anything is made. A limited rate is tried again first.
REFUSED = [
    _ngc(401, "ngc-auth", "ngc-key-invalid", "ngc-key-refused"),
    _ngc(402, "entitlement", "ngc-not-entitled"),
    _ngc(403, "entitlement", "ngc-not-entitled", "ngc-key-forbidden"),
    _ngc(404, "ngc", "ngc-image-not-found"),
    _ngc(429, "rate-limit", "ngc-rate-limited"),
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
WHOLE = [
    Case(
        "the service's image cannot be pulled",
        orders=(("pull-refused", "pods=service", "status=401"),),
        task="wait_service",
        layers=_of("ngc-auth"),
        reasons=_of("image-pull-unauthorized"),
        evidence=waiting(*PULLS),
    ),
    Case("an error storm", meanwhile=("wait_cache", for_a_while(12, "error-storm", "status=429"))),
    Case(
        "the cache's image is not there",
        orders=(("pull-refused", "pods=cache", "status=404"),),
        task="wait_cache",
        layers=_of("image-pull"),
        reasons=_of("image-pull-not-found"),
        evidence=waiting(*PULLS),
    ),
    Case("the cache's Job fails twice", orders=(("cache-job-fails", "pods=2"),)),
    Case(
        "no GPU capacity",
        orders=(("no-capacity",),),
        task="wait_cache",
        layers=_of("capacity"),
        reasons=_of("unschedulable-gpu", "unschedulable"),
        evidence=event("FailedScheduling", "required offering"),
        within_s=NODE_LAUNCH_S + 15,
        patience_s=540,
    ),
    Case(
        "the claim is not bound",
        orders=(("claim-unbound",),),
        task="wait_cache",
        layers=_of("volume"),
        reasons=_of("volume-unbound"),
        evidence=event("ProvisioningFailed"),
        within_s=NODE_LAUNCH_S + 15,
        patience_s=540,
    ),
    Case("a slow start", orders=(("slow-start", "start_s=45"),)),
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
        layers=_of("gate", "model-endpoint"),
        reasons=_of("unsteady", "not-ready", "gate-failed"),
        within_s=60,
    ),
    Case(
        "the model endpoint answers 500",
        orders=(("models-endpoint", "status=500"),),
        task="wait_service",
        layers=_of("model-endpoint"),
        reasons=_of("model-endpoint-unavailable"),
        evidence=pods_ready,
        within_s=NODE_LAUNCH_S + 15,
        patience_s=540,
    ),
    Case(
        "the operator is away",
        orders=(("operator-away",),),
        task="wait_platform",
        layers=_of("operator"),
        reasons=_of("operator-away", "operator-not-ready", "crash-loop"),
        evidence=operator_down,
        within_s=45,
        patience_s=300,
    ),
    Case("the API server is away", meanwhile=("wait_cache", restarted("kube-apiserver", 10))),
    Case("the watch is cut", meanwhile=("wait_cache", for_a_while(20, "watch-cut", "every_s=2"))),
    Case("errors of the API server", meanwhile=("wait_service", for_a_while(12, "error-storm", "status=500"))),
]
KNOWN = faults.CATALOGUE["registry"].settings["status"].choices


def _params() -> list[object]:
    short = [pytest.param(case, id=case.name, marks=pytest.mark.live(order=70)) for case in SHORT]
    slow = [
        pytest.param(case, id=case.name, marks=[pytest.mark.live(order=71), pytest.mark.slow])
        for case in [*(c for c in REFUSED if int(c.name.removeprefix("ngc-")) in KNOWN), *WHOLE]
    ]
    return [*short, *slow]


@pytest.fixture
def provisioned(live: Live) -> None:
    """A cluster with its operator and no model; made by the first deploy, whichever test that is."""
    if not live.runs:
        run = live.run("nim_deploy", live.params(skip_benchmark=True))
        assert run.state == "success", "\n".join(run.lines)
        live.runs["provisioned"] = run
    remove_models(live)


@pytest.mark.parametrize("case", _params())
def test_fault(live: Live, provisioned: None, case: Case) -> None:
    outcome = play(live, case)
    print(f"{case.name}: {outcome}")
    told = "\n".join([str(outcome), *outcome.notes, *outcome.run.lines])
    if not case.task:
        assert outcome.run.state == "success", told
        return
    assert outcome.run.state == "failed", told
    failed = {name for name, task in outcome.run.tasks.items() if task.state == "failed"}
    assert case.task in failed, told
    assert outcome.reason in case.reasons, told
    assert outcome.layer in case.layers, told
    assert outcome.late_s is not None and outcome.late_s <= case.within_s, told
