"""A plan that replaces something stops for a person: yes, no and silence through Airflow's API, and what becomes of
an answer that Airflow takes and loses. The runs wait side by side, each in an environment of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest
import requests

from nim_rollouts.clients import approvals, claims
from nim_rollouts.clients.ledger import Ledger
from nim_rollouts.clients.store import S3Store
from nim_rollouts.core.names import rollout_id
from rehearsal import summary
from rehearsal.airflow_api import AirflowError
from tests.rehearsal.live import DEPLOYMENT, ENVIRONMENT, Live, Run, until
from tests.rehearsal.own_include import small_environment

#: Nobody answers sooner than this, but the one who is to lose the race.
PEOPLE_S = 8
SILENCE_S = 10
#: Of a machine that is busy with more than this.
PATIENCE_S = 240
ASKS = "awaiting_input"
POLICIES: dict[str, dict[str, Any]] = {
    "asks-no": {"approval": "always", "approval_timeout_s": 900},
    "asks-nobody": {"approval": "always", "approval_timeout_s": SILENCE_S},
    "asks-fast": {"approval": "always", "approval_timeout_s": 900},
    "asks-yes": {"approval": "on-destroy", "approval_timeout_s": 900, "approvers": ["admin"]},
    "asks-never": {"approval": "never"},
}


@dataclass
class Desk:
    """The runs by environment, and what was said to them."""

    live: Live
    dags: dict[str, str] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    questions: dict[str, dict[str, Any]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)

    def begin(self, name: str, dag_id: str) -> None:
        self.dags[name], self.ended[name] = dag_id, ""
        self.runs[name] = self.live.api.trigger(dag_id, self.live.params(environment=name, skip_benchmark=True))

    def state(self, name: str, task: str = "approve_plan") -> str | None:
        return self.tasks(name)[task]

    def tasks(self, name: str) -> dict[str, str | None]:
        return {task.task_id: task.state for task in self.live.api.tasks(self.dags[name], self.runs[name])}

    def asked(self, name: str) -> None:
        """Until the question stands."""
        until(lambda: self.state(name) == ASKS, f"{name} to ask", PATIENCE_S)
        (self.questions[name],) = self.live.api.questions(self.dags[name], self.runs[name])

    def answer(self, name: str, option: str) -> dict[str, Any]:
        return self.live.api.answer(self.dags[name], self.runs[name], "approve_plan", option)

    def refused(self, name: str, option: str) -> str:
        with pytest.raises(AirflowError) as refused:
            self.answer(name, option)
        return str(refused.value).split("hitlDetails: ")[1][:3]

    def has_ended(self, name: str) -> bool:
        self.ended[name] = self.live.api.run_state(self.dags[name], self.runs[name])
        return self.ended[name] in ("success", "failed")

    def end(self, *names: str) -> None:
        for name in names:
            until(partial(self.has_ended, name), f"{name} to end", PATIENCE_S)

    def store(self) -> S3Store:
        client, bucket, prefix = summary.store(self.live.r, ENVIRONMENT)
        return S3Store(bucket, prefix, client)

    def records(self, name: str, stage: str, kind: str) -> list[dict[str, Any]]:
        """The facts of all tries of the run's stage, in order."""
        ledger = Ledger(self.store(), name, DEPLOYMENT, rollout_id(self.runs[name]))
        found = [one for one in ledger.records() if (one.stage, one.kind) == (stage, kind)]
        return [one.facts for one in sorted(found, key=lambda one: one.try_number)]

    def answered(self, name: str) -> approvals.Answer:
        """What the store keeps under the checksum of the run's plan."""
        checksum = self.records(name, "terraform_plan", "result")[-1]["checksum"]
        found = approvals.read_answer(self.store(), name, checksum)
        assert found is not None
        return found

    def has_state(self, name: str) -> bool:
        listed = self.live.aws("s3").list_objects_v2(Bucket="nim-rollouts-tfstate", Prefix=f"{name}/")
        return any(entry["Key"].endswith(".tfstate") for entry in listed.get("Contents", []))


@pytest.fixture(scope="module")
def desk(live: Live) -> Iterator[Desk]:
    """Two environments are made first, without a question; then all that is to be asked is asked at once."""
    found, include = Desk(live), live.r.include
    for name, policies in POLICIES.items():
        small_environment(include, name, revision=1, **policies)
    for name in ("asks-fast", "asks-yes", "asks-never"):
        found.begin(name, "plans")
    for name in ("asks-no", "asks-nobody"):
        found.begin(name, "nim_deploy")
    found.asked("asks-fast")
    # As soon as the API takes it: the worker that asked has not quite gone.
    found.answer("asks-fast", "Approve")
    found.end("asks-yes", "asks-never")
    for name in ("asks-yes", "asks-never"):
        small_environment(include, name, revision=2, **POLICIES[name])
        found.begin(name, "plans")
    for name in ("asks-no", "asks-yes"):
        found.asked(name)
    # What becomes of an answer in the first seconds is asks-fast's part; nothing tells when they are over.
    time.sleep(PEOPLE_S)
    found.refusals["viewer"] = viewer(found, "asks-yes")
    found.refusals["another option"] = found.refused("asks-yes", "Perhaps")
    found.answer("asks-no", "Reject")
    found.answer("asks-yes", "Approve")
    found.refusals["second answer"] = found.refused("asks-yes", "Reject")
    found.end("asks-no", "asks-nobody", "asks-fast", "asks-yes", "asks-never")
    yield found


def viewer(desk: Desk, name: str) -> str:
    """The status that a user gets who may only look."""
    base = desk.live.r.url("airflow")
    login = {"username": "viewer", "password": desk.live.r.airflow_password}
    token = requests.post(f"{base}/auth/token", json=login, timeout=30).json()["access_token"]
    run = quote(desk.runs[name], safe="")
    path = f"/api/v2/dags/{desk.dags[name]}/dagRuns/{run}/taskInstances/approve_plan/-1/hitlDetails"
    body = {"chosen_options": ["Approve"], "params_input": {}}
    headers = {"Authorization": f"Bearer {token}"}
    return str(requests.patch(base + path, json=body, headers=headers, timeout=30).status_code)


@pytest.mark.live(order=13)
def test_a_first_deploy_destroys_nothing_and_asks_nobody(live: Live, deployed: Run) -> None:
    facts = live.facts(deployed)
    approved = facts.of("approve_plan")
    assert (approved["answer"], approved["asked"], approved["policy"]) == ("approved", False, "on-destroy")
    client, bucket, prefix = summary.store(live.r, ENVIRONMENT)
    kept = approvals.read_answer(S3Store(bucket, prefix, client), ENVIRONMENT, facts.of("terraform_plan")["checksum"])
    assert kept is not None and kept.approved and not kept.asked
    assert ASKS not in deployed.states_seen["approve_plan"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.live(order=60)
class TestAsked:
    def test_a_change_that_replaces_something_stops_for_approval(self, desk: Desk) -> None:
        question = desk.questions["asks-yes"]
        assert question["subject"] == f"asks-yes: 1 to replace ({DEPLOYMENT})"
        assert "| replace | `terraform_data.thing` |" in question["body"]
        assert "**admin** asks for it" in question["body"]
        assert "g5.12xlarge" in question["body"]
        assert [user["id"] for user in question["assigned_users"]] == ["admin"]

    def test_a_yes_is_kept_under_the_plans_checksum_and_the_plan_is_applied(self, desk: Desk) -> None:
        assert desk.ended["asks-yes"] == "success"
        answer = desk.answered("asks-yes")
        assert (answer.answer, answer.by, answer.asked) == ("approved", "admin", True)
        assert answer.changes == [["terraform_data.thing", "replace"]]
        (result,) = desk.records("asks-yes", "approve_plan", "result")
        assert (result["by"], result["checksum"]) == ("admin", answer.checksum)
        (applied,) = desk.records("asks-yes", "terraform_apply", "result")
        assert applied["checksum"] == answer.checksum
        assert applied["changed"] is True

    def test_answers_that_airflow_refuses(self, desk: Desk) -> None:
        assert desk.refusals == {"viewer": "403", "another option": "400", "second answer": "409"}

    @pytest.mark.parametrize(
        ("name", "answer", "by"), [("asks-no", "rejected", "admin"), ("asks-nobody", "none", None)]
    )
    def test_a_no_and_silence_change_nothing_and_end_well(
        self, desk: Desk, name: str, answer: str, by: str | None
    ) -> None:
        tasks = desk.tasks(name)
        ran = {"validate", "terraform_plan", "approve_plan", "conclude"}
        assert {task for task, state in tasks.items() if state == "success"} == ran
        assert {state for task, state in tasks.items() if task not in ran} == {"skipped"}
        assert desk.ended[name] == "success"
        given = desk.answered(name)
        assert (given.answer, given.by) == (answer, by)
        (decided,) = desk.records(name, "conclude", "decision")
        assert decided["decision"] == "declined"
        assert given.at in decided["decision_reason"]
        assert not desk.has_state(name)
        for scope in (claims.environment_scope(name), claims.deployment_scope(name, DEPLOYMENT)):
            assert claims.held_by(desk.store(), scope) is None

    def test_an_answer_in_the_first_second_is_not_lost_and_not_asked_for_again(self, desk: Desk) -> None:
        """Airflow fails the try that it has interrupted, after it took the answer. Whether it did so here or not."""
        assert desk.ended["asks-fast"] == "success"
        assert len(desk.records("asks-fast", "approve_plan", "question")) == 1
        given = desk.answered("asks-fast")
        assert (given.answer, given.by) == ("approved", "admin")
        assert desk.has_state("asks-fast")

    def test_policy_never_replaces_without_a_word(self, desk: Desk) -> None:
        assert desk.ended["asks-never"] == "success"
        given = desk.answered("asks-never")
        assert (given.answer, given.asked, given.changes) == ("approved", False, [["terraform_data.thing", "replace"]])
        assert desk.live.api.questions("plans", desk.runs["asks-never"]) == []

    def test_a_cleared_task_finds_its_answer(self, desk: Desk) -> None:
        live, run = desk.live, desk.runs["asks-yes"]
        live.api.clear("plans", run, "approve_plan")
        until(lambda: len(desk.records("asks-yes", "approve_plan", "result")) == 2, "the cleared task", PATIENCE_S)
        assert len(desk.records("asks-yes", "approve_plan", "question")) == 1
        desk.end("asks-yes")
