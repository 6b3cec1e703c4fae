"""The NGC key of the shared rehearsal is a canary: wherever a secret may not be, it is looked for in every form. So is
the password that AWS makes for Grafana while terraform applies."""

from __future__ import annotations

import pytest

from rehearsal import airflow
from tests.rehearsal.live import DEPLOYMENT, NAMESPACE, Live
from tests.rehearsal.secrets_watch import CommandLines, forms, in_bytes, in_files

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
    import base64

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
    command_lines.wanted += forms(password)


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
