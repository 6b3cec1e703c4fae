"""Rollouts whose processes are killed at every write, and whose API server is taken away: each converges.

The places to kill at are not chosen: they are the writes that the API server's audit log has of a clean run.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos import audit
from tests.chaos.kills import Part, Strikes, TaskProcess
from tests.chaos.rollout import Rollout, clean_slate, roll_out, table, wrong
from tests.rehearsal.disorder import Meanwhile, for_a_while, remove_models, restarted
from tests.rehearsal.live import DEPLOYMENT, Live
from tests.rehearsal.plane import compact

pytestmark = pytest.mark.timeout(1500)

#: Two writes of one task come 10 ms apart, and a triggerer needs seconds to be back: they take turns.
ROUNDS = 4
#: What a rollout applies to a platform that stands, and finds there: node pools with their classes, Grafana's password.
STANDING = {"nodepools", "ec2nodeclasses", "secrets"}
#: By the rehearsal's state folder.
_CLEAN: dict[Path, Rollout] = {}


@pytest.fixture
def platform(live: Live) -> None:
    """A cluster with its operator, and no model; made by the first deploy, whichever test that is."""
    if not live.runs:
        live.runs["provisioned"] = live.run("nim_deploy", live.params(skip_benchmark=True))
        assert live.runs["provisioned"].state == "success", "\n".join(live.runs["provisioned"].lines)
    remove_models(live)


@pytest.fixture
def slate(live: Live, platform: None) -> None:
    """The platform alone."""
    clean_slate(live)


@pytest.fixture
def clean(live: Live, platform: None) -> Rollout:
    """A whole rollout that nothing was killed in, made once: what it wrote tells where to kill."""
    if live.r.state not in _CLEAN:
        clean_slate(live)
        _CLEAN[live.r.state] = roll_out(live)
    return _CLEAN[live.r.state]


@pytest.mark.slow
@pytest.mark.live(order=75)
def test_tasks_and_a_triggerer_killed_as_a_model_is_written(live: Live, platform: None) -> None:
    """The short form: one rollout without a benchmark, on what an earlier one has left but its model."""
    # Also of models that only other runs roll out: those places are not come to.
    points = audit.points(audit.read(live.r.logs / "audit.jsonl"))
    services = [point for point in points if point.resource == "nimservices"]
    caches = [point for point in points if point.resource == "nimcaches"]
    tasks = Strikes(live, TaskProcess(live), [*caches, *services])
    triggerer = Strikes(live, Part(live, "airflow-triggerer"), services)
    rollout = roll_out(live, [tasks, triggerer], skip_benchmark=True)
    _show("killed as a model is written", rollout)
    assert wrong(live, rollout) == []
    assert [strike for strike in tasks.done if not strike.late], "no kill came in time"
    assert triggerer.done


@pytest.mark.slow
@pytest.mark.live(order=76)
def test_a_clean_run_tells_where_to_kill(live: Live, clean: Rollout) -> None:
    _show("clean", clean)
    assert wrong(live, clean) == []
    assert audit.repeated(clean.writes) <= STANDING
    kinds = {point.resource for point in clean.points}
    assert {"namespaces", "secrets", "nimcaches", "nimservices", "services", "configmaps", "jobs"} <= kinds
    assert [point.name for point in clean.points if "-probe-" in point.name] == [f"{DEPLOYMENT}-probe-*"]


@pytest.mark.slow
@pytest.mark.live(order=77)
@pytest.mark.parametrize("who", ["task", "triggerer"])
def test_a_kill_at_every_write(live: Live, clean: Rollout, slate: None, who: str) -> None:
    left = clean.points
    for number in range(ROUNDS):
        strikes = Strikes(live, TaskProcess(live) if who == "task" else Part(live, "airflow-triggerer"), left)
        measured = any(point.resource in ("configmaps", "jobs") for point in left)
        rollout = roll_out(live, [strikes], skip_benchmark=not measured)
        _show(f"{who} killed, round {number + 1}", rollout)
        assert wrong(live, rollout, clean if measured else None) == []
        assert len(strikes.open) < len(left), "a round without one kill in time"
        left = strikes.open
        if not left:
            return
        clean_slate(live)
    pytest.fail(f"never killed at {left}")


@pytest.mark.slow
@pytest.mark.live(order=78)
def test_the_api_server_away_cut_compacted_and_clogged(live: Live, clean: Rollout, slate: None) -> None:
    made = {point.resource: point for point in clean.points}
    server = Strikes(live, Part(live, "kube-apiserver", away_s=3), [made["nimservices"], made["jobs"]])
    disorders: list[tuple[str, Meanwhile]] = [
        ("apply_secrets", for_a_while(5, "error-storm", "status=500", "percent=60")),
        ("wait_cache", _compacted_while(restarted("kube-apiserver", 5, kill=True))),
        ("wait_service", _compacted_while(for_a_while(8, "watch-cut", "every_s=1"))),
        ("wait_benchmark", restarted("airflow-triggerer", 0, kill=True)),
        ("wait_benchmark", for_a_while(10, "error-storm", "status=429")),
    ]
    rollout = roll_out(live, [server], disorders, patience_s=600)
    _show("disorder", rollout)
    assert wrong(live, rollout, clean) == []
    assert len(rollout.disorders) == len(disorders)
    assert server.open == []


def _compacted_while(disorder: Meanwhile) -> Meanwhile:
    """etcd forgets its history meanwhile: who comes back and asks for what it has missed is answered `410 Gone`."""

    def act(live: Live) -> None:
        with ThreadPoolExecutor() as pool:
            lasting = pool.submit(disorder, live)
            time.sleep(2)  # of a disorder that lasts 5 s and more
            compact(live.r)
            lasting.result()

    return act


def _show(title: str, rollout: Rollout) -> None:
    print("\n" + table(title, rollout), flush=True)
