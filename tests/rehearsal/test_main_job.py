"""The main job, shown: what must be true of a rollout, of the next one, of cleared tasks, and after a teardown.

One rehearsal and one first deploy serve all of these; `order` says which comes when, because the deployment that
one test looks at is the one that the next rolls out again. Facts are read where a user would read them: kubectl,
Airflow's API, the AWS APIs, the objects in the store.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rehearsal.aws.inventory import inventory
from tests.rehearsal.live import DEPLOYMENT, ENVIRONMENT, NAMESPACE, NIM, Live, Run, until

pytestmark = pytest.mark.timeout(900)

WAITS = ("wait_platform", "wait_cache", "wait_service", "wait_benchmark")
#: A wait that lasts no second may end between two looks at Airflow; these three cannot.
SEEN_WAITS = ("wait_cache", "wait_service", "wait_benchmark")


@pytest.mark.live(order=10)
def test_a_deploy_ends_promoted(live: Live, deployed: Run) -> None:
    assert deployed.state == "success", "\n".join(deployed.lines)
    assert live.facts(deployed).decision == "promoted"


@pytest.mark.live(order=11)
def test_the_waits_were_deferred(live: Live, deployed: Run) -> None:
    for name in SEEN_WAITS:
        assert "deferred" in deployed.states_seen[name], f"{name} was seen as {deployed.states_seen[name]}"
    for name in WAITS:
        # Airflow gives a trigger a log file of its own: it exists only where the triggerer ran one for this try.
        folder = live.r.logs / "airflow" / f"dag_id=nim_deploy/run_id={deployed.run_id}/task_id={name}"
        assert list(folder.glob("attempt=*.log.trigger.*")), f"no trigger ran for {name}: {sorted(folder.glob('*'))}"
        (only,) = live.api.tries("nim_deploy", deployed.run_id, name)
        assert only["state"] == "success", f"{name} needed another try"


@pytest.mark.live(order=12)
def test_kubectl_shows_both_ready(live: Live, deployed: Run) -> None:
    for kind in ("nimcaches", "nimservices"):
        (obj,) = live.objects(f"{kind}.{NIM}", NAMESPACE)
        assert obj["status"]["state"] == "Ready", obj["status"]
        assert obj["metadata"]["name"].startswith(DEPLOYMENT + "-")
        assert obj["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "nim-rollouts"


@pytest.mark.live(order=12)
def test_the_pod_was_scheduled_to_a_new_gpu_node(live: Live, deployed: Run) -> None:
    (service,) = live.objects(f"nimservices.{NIM}", NAMESPACE)
    name = service["metadata"]["name"]
    (pod,) = [p for p in live.objects("pods", NAMESPACE) if p["metadata"].get("labels", {}).get("app") == name]
    node = json.loads(live.kubectl("get", "node", pod["spec"]["nodeName"], "-o", "json"))
    assert int(node["status"]["capacity"]["nvidia.com/gpu"]) == 4
    assert node["metadata"]["uid"] not in live.nodes_before, "the node was there before the deploy"
    scheduled = next(c for c in pod["status"]["conditions"] if c["type"] == "PodScheduled")
    assert scheduled["status"] == "True"
    events = live.objects("events", NAMESPACE)
    by = {e.get("reportingComponent") or e["source"].get("component") for e in events if e["reason"] == "Scheduled"}
    assert by == {"default-scheduler"}


@pytest.mark.live(order=13)
def test_the_stable_address_answers_inside_a_pod(live: Live, deployed: Run) -> None:
    program = (
        "import urllib.request as u;"
        f"print(u.urlopen('http://{DEPLOYMENT}.{NAMESPACE}:8000/v1/models', timeout=20).read().decode())"
    )
    models = json.loads(live.in_a_pod(program))
    assert [m["id"] for m in models["data"]] == ["meta/llama-3.1-8b-instruct"]


@pytest.mark.live(order=14)
def test_the_report_is_of_a_hundred_real_requests(live: Live, deployed: Run) -> None:
    facts = live.facts(deployed)
    judged = facts.of("judge", "report")
    assert (judged["requested"], judged["done"], judged["errors"]) == (100, 100, 0)
    assert judged["tool"] == "aiperf"
    assert facts.report, "the whole report is not in the store"
    whole = json.loads(facts.report.read_text())["report"]
    assert whole["request_count"]["avg"] == 100
    for metric in ("time_to_first_token", "inter_token_latency", "output_token_throughput"):
        assert (facts.metric(metric, "avg") or 0) > 0, metric


@pytest.mark.live(order=15)
def test_terraform_keeps_its_state_in_s3(live: Live, deployed: Run) -> None:
    states = [content for place, content in live.stored() if "terraform.tfstate (" in place]
    assert states
    kinds = {resource["type"] for resource in json.loads(states[0])["resources"]}
    assert {"aws_eks_cluster", "aws_vpc", "aws_subnet", "aws_efs_file_system", "aws_efs_mount_target"} <= kinds


@pytest.mark.live(order=16)
def test_every_stage_emitted_its_asset_with_what_it_did(live: Live, deployed: Run) -> None:
    query = {"source_dag_id": "nim_deploy", "source_run_id": deployed.run_id, "limit": 200}
    events = live.api.call("GET", "/assets/events", **query)["asset_events"]
    with_facts = {e["source_task_id"] for e in events if {k for k in e["extra"] if k != "from_rest_api"}}
    without = {name for name, task in deployed.tasks.items() if task.state == "success"} - with_facts
    assert {name.split("[")[0] for name in without} - with_facts <= {"conclude"}, f"no asset with facts from {without}"


@pytest.mark.live(order=17)
def test_the_ledger_tells_the_whole_story(live: Live, deployed: Run) -> None:
    facts = live.facts(deployed)
    stages = {stage for stage, _ in facts.records}
    assert {"validate", "terraform_apply", "apply_cache", "wait_cache", "apply_service", "wait_service"} <= stages
    assert {"smoke_test", "wait_benchmark", "judge", "promote"} <= stages
    assert all(key.split("/")[1] == ENVIRONMENT and key.split("/")[2] == DEPLOYMENT for key in facts.keys)
    for record in facts.records.values():
        assert record["format"] == "nim-rollouts/ledger/v1"


@pytest.mark.live(order=18)
def test_the_platform_was_verified_and_the_storage_probed(live: Live, deployed: Run) -> None:
    facts = live.facts(deployed)
    checks = {one["name"]: one for one in facts.of("verify_platform")["checks"]}
    pools = "ok" if facts.of("validate").get("node_pools") else "not-applicable"
    assert {name: one["outcome"] for name, one in checks.items()} == {
        "crds": "ok", "operators": "ok", "webhooks": checks["webhooks"]["outcome"], "storage": "ok",
        "node-pools": pools, "gpu-fit": pools, "quota": "ok", "dry-run": "ok",
    }  # fmt: skip
    assert checks["webhooks"]["outcome"] in ("ok", "not-applicable")
    assert "was bound, written and read by" in checks["storage"]["seen"]
    assert "storage: ok" in live.log(deployed, "verify_platform")
    assert facts.of("validate")["quotas"]["outcome"] == "ok"
    assert [
        job["metadata"]["name"] for job in live.objects("jobs", NAMESPACE) if "-probe-" in job["metadata"]["name"]
    ] == []
    claims = [claim["metadata"]["name"] for claim in live.objects("persistentvolumeclaims", NAMESPACE)]
    assert [name for name in claims if "-probe-" in name] == []


@pytest.mark.live(order=30)
def test_the_same_again_changes_nothing(live: Live, deployed: Run) -> None:
    before = live.specs()
    runs: list[Run] = []
    writes = live.aws_writes(lambda: runs.append(live.run("nim_deploy", live.params())))
    (again,) = runs
    live.runs["last"] = again
    assert again.state == "success", "\n".join(again.lines)
    assert live.facts(again).decision == "promoted"
    assert writes == []
    after = live.specs()
    assert {k: v for k, v in after.items() if before.get(k) != v} == {}
    assert before.keys() == after.keys()


@pytest.mark.live(order=40)
@pytest.mark.parametrize("task", ["wait_service", "apply_service", "smoke_test"])
def test_a_cleared_task_ends_well(live: Live, deployed: Run, task: str) -> None:
    _clear_and_follow(live, task)


@pytest.mark.slow
@pytest.mark.live(order=41)
def test_every_task_may_be_cleared(live: Live, deployed: Run) -> None:
    order = live.api.order("nim_deploy")
    ran = {t.task_id for t in _last(live).tasks.values() if t.state == "success"}
    for task in order:
        if task in ran:
            _clear_and_follow(live, task)


@pytest.mark.live(order=45)
def test_a_task_of_an_older_run_is_refused(live: Live, deployed: Run) -> None:
    last = _last(live)
    assert last.run_id != deployed.run_id
    before = live.specs()
    live.api.clear("nim_deploy", deployed.run_id, "apply_service")
    refused = live.follow("nim_deploy", deployed.run_id)
    assert refused.tasks["apply_service"].state == "failed"
    assert "superseded" in live.log(refused, "apply_service").lower()
    assert live.specs() == before


@pytest.mark.live(order=50)
def test_bad_requests_are_refused_before_anything_is_made(live: Live, deployed: Run) -> None:
    before, runs = live.specs(), {}
    for what, params in (
        ("no such deployment", live.params(deployment="no-such-model")),
        ("no such tag", live.params(image_tag="0.0.0-nowhere")),
    ):
        runs[what] = live.api.trigger("nim_deploy", params)
    expected = {"no such deployment": "no-such-model", "no such tag": "0.0.0-nowhere"}
    for what, run_id in runs.items():
        run = live.follow("nim_deploy", run_id)
        assert run.state == "failed", what
        assert run.tasks["validate"].state == "failed", what
        assert expected[what] in live.log(run, "validate")
        started = [t.name for t in run.tasks.values() if t.state == "success"]
        assert set(started) <= {"conclude"}, what
    assert live.specs() == before


@pytest.mark.slow
@pytest.mark.live(order=51)
def test_a_key_that_ngc_refuses_is_refused(live: Live, deployed: Run) -> None:
    before = live.specs()
    live.fault("registry", "image=nim/meta/llama-3.1-8b-instruct", "status=401")
    try:
        run = live.run("nim_deploy", live.params())
    finally:
        live.fault("--clear")
    assert run.tasks["validate"].state == "failed"
    assert any("reason=ngc-" in line for line in run.lines if line.startswith("validate failed:")), run.lines
    assert live.specs() == before


@pytest.mark.slow
@pytest.mark.live(order=52)
def test_a_second_run_is_refused_while_one_holds_the_claim(live: Live, deployed: Run) -> None:
    first = live.api.trigger("nim_deploy", live.params())

    def validated() -> bool:
        tasks = {task.name: task.state for task in live.api.tasks("nim_deploy", first)}
        return tasks.get("validate") == "success"

    until(validated, "the first run to hold the claim")
    second = live.run("nim_deploy", live.params())
    assert second.state == "failed"
    (why,) = [line for line in second.lines if line.startswith("validate failed:")]
    assert "reason=claim-held" in why and first in why
    live.runs["last"] = live.follow("nim_deploy", first)
    assert live.runs["last"].state == "success"


@pytest.mark.slow
@pytest.mark.live(order=60)
def test_a_cache_whose_first_pod_fails_is_promoted(live: Live, deployed: Run) -> None:
    _remove_deployment(live)
    live.fault("cache-job-fails", "pods=1")
    try:
        run = live.run("nim_deploy", live.params())
    finally:
        live.fault("--clear")
    live.runs["last"] = run
    assert run.state == "success", "\n".join(run.lines)
    assert live.facts(run).decision == "promoted"
    # The Job itself is gone by now; its controller's events say how many pods it took.
    pods_made: dict[str, int] = {}
    for event in live.objects("events", NAMESPACE):
        of = event["involvedObject"]
        if of["kind"] == "Job" and of["name"].endswith("-job") and event["reason"] == "SuccessfulCreate":
            pods_made[of["uid"]] = pods_made.get(of["uid"], 0) + (event.get("count") or 1)
    assert max(pods_made.values(), default=0) >= 2, f"the fault did not come to pass: {pods_made}"


@pytest.mark.slow
@pytest.mark.live(order=61)
def test_thirty_percent_of_errors_are_rejected(live: Live, deployed: Run) -> None:
    _remove_deployment(live)
    live.fault("benchmark-errors", "percent=30")
    try:
        run = live.run("nim_deploy", live.params())
    finally:
        live.fault("--clear")
    live.runs["last"] = run
    assert run.state == "failed"
    assert live.facts(run).decision == "rejected"
    (why,) = [line for line in run.lines if line.startswith("judge failed:")]
    assert "reason=slo-missed" in why and "error rate 30 %" in why
    assert "error rate 30 %" in str(live.facts(run).reason)
    assert live.objects(f"nimservices.{NIM}", NAMESPACE) == []
    (cache,) = live.objects(f"nimcaches.{NIM}", NAMESPACE)
    assert cache["status"]["state"] == "Ready"


@pytest.mark.live(order=90)
def test_a_teardown_leaves_nothing(live: Live, deployed: Run) -> None:
    run = live.run("nim_teardown", {"environment": ENVIRONMENT, "scope": "everything", "confirm": ENVIRONMENT})
    live.runs["teardown"] = run
    assert run.state == "success", "\n".join(run.lines)
    for kind in (f"nimcaches.{NIM}", f"nimservices.{NIM}", "persistentvolumeclaims", "persistentvolumes"):
        assert live.objects(kind) == [], kind
    gpu = [n["metadata"]["name"] for n in live.objects("nodes") if "nvidia.com/gpu" in n["status"].get("capacity", {})]
    assert gpu == []
    left = inventory(live.r)
    assert set(left) <= {"s3-bucket"}, left
    current = live.aws("s3").get_object(**_state_place(live))
    assert json.loads(current["Body"].read())["resources"] == []


def _state_place(live: Live) -> dict[str, str]:
    import yaml

    text = (Path(live.r.root) / "include" / "environments" / f"{ENVIRONMENT}.yaml").read_text()
    state = yaml.safe_load(text)["terraform"]["state"]
    return {"Bucket": state["bucket"], "Key": state["key"]}


def _last(live: Live) -> Run:
    if "last" not in live.runs:
        live.runs["last"] = live.run("nim_deploy", live.params())
        assert live.runs["last"].state == "success", "\n".join(live.runs["last"].lines)
    return live.runs["last"]


def _clear_and_follow(live: Live, task: str) -> None:
    last, before = _last(live), live.specs()
    live.api.clear("nim_deploy", last.run_id, task)
    run = live.follow("nim_deploy", last.run_id)
    assert run.state == "success", f"cleared {task}:\n" + "\n".join(run.lines)
    assert live.specs() == before, task
    live.runs["last"] = run


def _remove_deployment(live: Live) -> None:
    run = live.run("nim_teardown", {"environment": ENVIRONMENT, "deployment": DEPLOYMENT, "scope": "deployment"})
    assert run.state == "success", "\n".join(run.lines)
