"""The NGC key of the shared rehearsal is a canary: wherever a secret may not be, it is looked for in every form. So is
the password that AWS makes for Grafana while terraform applies."""

from __future__ import annotations

import base64
import json

import pytest

from rehearsal import airflow
from tests.rehearsal.live import DEPLOYMENT, NAMESPACE, Live
from tests.rehearsal.secrets_watch import CommandLines, forms, in_bytes, in_files

#: The namespace of the monitoring stack.
GRAFANA = "monitoring"
#: Where the key must be, or may: its own file, the cluster's Secrets (etcd), and what pods are given.
_LAWFUL = ("ngc-key", "etcd", "pods", "postgres")


@pytest.mark.live(order=92)
def test_the_canary_was_used(live: Live, canary: str) -> None:
    """Without this the other tests would hold for a rehearsal that never had the key."""
    assert live.r.ngc_key_file.read_text().strip() == canary
    ngc = (live.r.logs / "ngc.log").read_text()
    assert "200" in ngc, "the NGC stand-in never accepted it"


@pytest.mark.live(order=20)
def test_the_canary_reached_its_secret(live: Live, canary: str) -> None:
    if "first" not in live.runs:
        pytest.skip("needs the deploy of test_main_job.py")
    values = [v for s in live.objects("secrets", NAMESPACE) for v in (s.get("data") or {}).values()]
    assert canary in "".join(base64.b64decode(v).decode(errors="replace") for v in values), DEPLOYMENT


@pytest.mark.live(order=21)
def test_aws_made_grafanas_password(live: Live, command_lines: CommandLines) -> None:
    if "first" not in live.runs:
        pytest.skip("needs the deploy of test_main_job.py")
    secrets = live.aws("secretsmanager")
    [name] = [secret["Name"] for secret in secrets.list_secrets()["SecretList"] if "grafana" in secret["Name"]]
    password = secrets.get_secret_value(SecretId=name)["SecretString"]
    assert len(password) == 32
    assert name in "".join(content.decode() for place, content in live.stored() if "terraform_outputs" in place)
    live.passwords.append(password)
    command_lines.wanted += forms(password)  # looked for in what was seen since before `up`


@pytest.mark.live(order=22)
def test_grafana_is_given_the_password_by_name(live: Live) -> None:
    """From Secrets Manager into the Secret that the release names: there, and nowhere else in the cluster."""
    if not live.passwords:
        pytest.skip("needs the password that the test before came to know")
    [secret] = [one for one in live.objects("secrets", GRAFANA) if one["metadata"]["name"] == "grafana-admin"]
    held = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    assert held == {"admin-user": "admin", "admin-password": live.passwords[-1]}
    [deployment] = live.objects("deployments", GRAFANA)
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    source = {env["name"]: env.get("valueFrom") for env in container["env"]}["GF_SECURITY_ADMIN_PASSWORD"]
    assert source == {"secretKeyRef": {"name": "grafana-admin", "key": "admin-password"}}


@pytest.mark.live(order=23)
def test_no_other_object_of_the_cluster_holds_it(live: Live, canary: str) -> None:
    """Nor does what Helm keeps of a release: a chart's values and objects, packed, in a Secret of its own."""
    if "first" not in live.runs:
        pytest.skip("needs the deploy of test_main_job.py")
    wanted = _wanted(live, canary)
    for kind in ("configmaps", "deployments", "daemonsets", "jobs", "pods", "events", "nimcaches", "nimservices"):
        found = live.objects(kind)
        assert found or kind == "daemonsets", f"no {kind} to look at"
        assert [one["metadata"]["name"] for one in found if in_bytes(json.dumps(one).encode(), wanted)] == []
    releases = [one for one in live.objects("secrets") if one["type"] == "helm.sh/release.v1"]
    unpacked = {one["metadata"]["name"]: base64.b64decode(base64.b64decode(one["data"]["release"])) for one in releases}
    assert any("kube-prometheus-stack" in name for name in unpacked)
    assert all(content.startswith(b"\x1f\x8b") for content in unpacked.values())
    assert [name for name, content in unpacked.items() if in_bytes(content, wanted)] == []


def _wanted(live: Live, canary: str) -> list[bytes]:
    return [form for secret in (canary, *live.passwords) for form in forms(secret)]


@pytest.mark.live(order=93)
def test_no_command_line_held_it(live: Live, command_lines: CommandLines) -> None:
    assert command_lines.samples > 100
    assert {"terraform", "airflow"} & command_lines.programs, "the sampler did not see the processes it is about"
    assert command_lines.found == set()


@pytest.mark.live(order=94)
def test_no_log_work_file_or_plan_holds_it(live: Live, canary: str) -> None:
    assert (live.r.logs / "airflow").is_dir()
    plans = [path for path in (live.r.path("work")).rglob("*") if path.is_file() and "plan" in path.name]
    assert plans, "no plan file is there: the search would prove nothing of them"
    assert live.passwords, "the password of this rehearsal never became known"
    found = in_files(live.r.state, _wanted(live, canary), skip=_LAWFUL)
    assert found == []


@pytest.mark.live(order=95)
def test_no_object_in_a_bucket_holds_it(live: Live, canary: str) -> None:
    wanted = _wanted(live, canary)
    places = dict(live.stored())
    assert any("tfstate" in place for place in places)
    assert any("/ledger/" in place for place in places)
    assert [place for place, content in places.items() if in_bytes(content, wanted)] == []


@pytest.mark.live(order=96)
def test_no_row_of_airflows_database_holds_it(live: Live, canary: str) -> None:
    """XCom, rendered fields, the audit log, asset events and everything else: all tables, as text."""
    import psycopg

    url = airflow.environment(live.r)["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", "")
    wanted = _wanted(live, canary)
    found, rows = [], 0
    with psycopg.connect(url) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (name,) in names:
            for (row,) in connection.execute(f'SELECT t::text FROM "{name}" AS t'):  # noqa: S608 - a table's own name
                rows += 1
                if in_bytes(row.encode(), wanted):
                    found.append(name)
    assert rows > 100, "the database was all but empty"
    assert sorted(set(found)) == []
