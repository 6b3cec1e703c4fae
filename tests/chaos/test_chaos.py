"""Rollouts whose processes are killed at every write, and whose API server is taken away: each converges.

The places to kill at are not chosen: they are the writes that the API server's audit log has of a clean run.
"""

from __future__ import annotations

import pytest

from tests.chaos.kills import Part, Strikes, TaskProcess
from tests.chaos.rollout import Rollout, clean_slate, roll_out, table, wrong
from tests.rehearsal.disorder import Meanwhile, for_a_while, restarted
from tests.rehearsal.live import Live
from tests.rehearsal.plane import compact

pytestmark = pytest.mark.timeout(1500)

#: Two writes of one task come 10 ms apart, and a triggerer needs seconds to be back: they take turns.
ROUNDS = 4


@pytest.fixture
def platform(live: Live) -> None:
    """A cluster with its operator; made by the first deploy, whichever test that is."""
    if not live.runs:
        live.runs["provisioned"] = live.run("nim_deploy", live.params(skip_benchmark=True))
        assert live.runs["provisioned"].state == "success", "\n".join(live.runs["provisioned"].lines)
    clean_slate(live)


@pytest.fixture(scope="module")
def clean() -> dict[str, Rollout]:
    """The rollout that nothing was killed in, shared by the tests that hold theirs against it."""
    return {}


@pytest.mark.live(order=75)
def test_a_killed_task_and_a_killed_triggerer_change_nothing(live: Live, platform: None) -> None:
    """The short form: one rollout without a benchmark, its cache's and its service's task killed as they write."""
    from tests.chaos.audit import Point

    first = _names(live)
    cache = Point("patch", "nimcaches", first["nimcaches"])
    service = Point("patch", "nimservices", first["nimservices"])
    tasks = Strikes(live, TaskProcess(live), [cache, service])
    triggerer = Strikes(live, Part(live, "airflow-triggerer"), [service])
    rollout = roll_out(live, [tasks, triggerer], skip_benchmark=True)
    _show("killed at the model's writes", rollout)
    assert wrong(live, rollout) == []
    assert [strike.point for strike in tasks.done if not strike.late], "no kill came in time"
    assert triggerer.done


@pytest.mark.slow
@pytest.mark.live(order=76)
def test_a_clean_run_tells_where_to_kill(live: Live, platform: None, clean: dict[str, Rollout]) -> None:
    rollout = clean["run"] = roll_out(live)
    _show("clean", rollout)
    assert wrong(live, rollout) == []
    assert len(rollout.points) == len(rollout.makings), f"not each write makes an object: {rollout.points}"
    kinds = {point.resource for point in rollout.points}
    assert {"namespaces", "secrets", "nimcaches", "nimservices", "services", "configmaps", "jobs"} <= kinds


@pytest.mark.slow
@pytest.mark.live(order=77)
@pytest.mark.parametrize("who", ["task", "triggerer"])
def test_a_kill_at_every_write(live: Live, platform: None, clean: dict[str, Rollout], who: str) -> None:
    if "run" not in clean:
        clean["run"] = roll_out(live)
        clean_slate(live)
    left = clean["run"].points
    for number in range(ROUNDS):
        victim = TaskProcess(live) if who == "task" else Part(live, "airflow-triggerer")
        strikes = Strikes(live, victim, left)
        rollout = roll_out(live, [strikes])
        _show(f"{who} killed, round {number + 1}", rollout)
        assert wrong(live, rollout, clean["run"]) == []
        assert len(strikes.open) < len(left), "a round without one kill in time"
        left = strikes.open
        if not left:
            return
        clean_slate(live)
    pytest.fail(f"never killed at {left}")


@pytest.mark.slow
@pytest.mark.live(order=78)
def test_the_api_server_away_cut_compacted_and_clogged(live: Live, platform: None, clean: dict[str, Rollout]) -> None:
    if "run" not in clean:
        clean["run"] = roll_out(live)
        clean_slate(live)
    made = {point.resource: point for point in clean["run"].points}
    server = Strikes(live, Part(live, "kube-apiserver", away_s=3), [made["nimservices"], made["jobs"]])
    disorders: list[tuple[str, Meanwhile]] = [
        ("apply_secrets", for_a_while(5, "error-storm", "status=500", "percent=60")),
        ("wait_cache", _compacted_while(restarted("kube-apiserver", 5, kill=True))),
        ("wait_service", _compacted_while(for_a_while(8, "watch-cut", "every_s=1"))),
        ("wait_benchmark", for_a_while(10, "error-storm", "status=429")),
        ("wait_benchmark", restarted("airflow-triggerer", 0, kill=True)),
    ]
    rollout = roll_out(live, [server], disorders, patience_s=600)
    _show("disorder", rollout)
    assert wrong(live, rollout, clean["run"]) == []
    assert len(rollout.disorders) == len(disorders)
    assert server.open == []


def _compacted_while(disorder: Meanwhile) -> Meanwhile:
    """etcd forgets its history as the disorder ends: whoever was away is answered `410 Gone`."""

    def act(live: Live) -> None:
        disorder(live)
        compact(live.r)

    return act


def _show(title: str, rollout: Rollout) -> None:
    print("\n" + table(title, rollout), flush=True)


def _names(live: Live) -> dict[str, str]:
    """What a rollout of the standard deployment calls its cache and its service."""
    from nim_rollouts.clients.include import Include
    from nim_rollouts.core.names import names_for
    from tests.rehearsal.live import DEPLOYMENT

    names = names_for(Include(live.r.root / "include").deployment(DEPLOYMENT), "any")
    return {"nimcaches": names.cache, "nimservices": names.service}
