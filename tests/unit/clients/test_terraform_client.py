"""The terraform client with a small program in terraform's place: files, arguments, signals, locks, versions."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from nim_rollouts.clients.terraform import StateMark, Terraform, checksum, find_plugin_dir
from nim_rollouts.clients.terraform_locks import own_lock
from nim_rollouts.core.errors import TerraformFailed, TerraformUnavailable, ToolMissing

FAKE = r"""#!%(python)s
import json, os, pathlib, signal, subprocess, sys, time
args = sys.argv[1:]
here = pathlib.Path(os.environ["FAKE_DIR"])
with (here / "calls").open("a") as calls:
    calls.write(json.dumps({"args": args, "env": dict(os.environ), "cwd": os.getcwd()}) + "\n")
def say(**event):
    print(json.dumps(event), flush=True)
if args[0] == "version":
    print(json.dumps({"terraform_version": os.environ.get("FAKE_VERSION", "1.11.4")}))
elif args[0] == "plan":
    for out in [a[5:] for a in args if a.startswith("-out=")]:
        pathlib.Path(out).write_text("plan " + str(time.time()))
    resource = {"addr": "aws_vpc.this", "resource_type": "aws_vpc"}
    say(type="planned_change", change={"resource": resource, "action": "create"})
    sys.exit(2 if "-detailed-exitcode" in args else 0)
elif args[0] in ("show", "output", "state") and (here / "hang-telling").exists():
    print(json.dumps({"password": os.environ["FAKE_SECRET"]}), flush=True)
    (here / "told").touch()
    time.sleep(50)
elif args[0] == "show":
    change = {"address": "aws_vpc.this", "change": {"actions": ["create"]}}
    print(json.dumps({"resource_changes": [change]}))
elif args[0] == "apply" and (here / "hang").exists():
    asked = []
    signal.signal(signal.SIGINT, lambda *_: asked.append(1))
    if (here / "plugin").exists():
        env = os.environ | {"TF_PLUGIN_MAGIC_COOKIE": "d602"}
        plugin = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(50)"], env=env, close_fds=False)
        (here / "plugin-pid").write_text(str(plugin.pid))
    say(type="apply_start", hook={"resource": {"addr": "aws_vpc.this"}, "action": "create"})
    while not asked:
        time.sleep(0.02)
    time.sleep(0.3)
    (here / "sigints").write_text(str(len(asked)))
    say(type="diagnostic", diagnostic={"severity": "error", "summary": "execution halted"})
    sys.exit(1)
elif args[0] == "apply" and (here / "fails").exists():
    if (here / "fails").read_text() == "half-way":
        say(type="apply_start", hook={"resource": {"addr": "aws_vpc.this"}, "action": "create"})
    say(type="diagnostic", diagnostic={"severity": "error", "summary": "Error acquiring the state lock"})
    sys.exit(1)
elif args[0] == "apply":
    say(type="apply_complete", hook={"resource": {"addr": "aws_vpc.this"}, "action": "create", "elapsed_seconds": 1})
    say(type="change_summary", **{"@message": "done", "changes": {"add": 1, "change": 0, "remove": 0}})
elif args[0] == "output":
    print(json.dumps({"region": {"value": "us-west-2"}, "password": {"value": "x", "sensitive": True}}))
elif args[:2] == ["state", "pull"]:
    print(json.dumps({"version": 4, "serial": 3, "lineage": "l-1", "outputs": {}}, indent=2))
elif args[:2] == ["state", "list"]:
    if (here / "empty").exists():
        print("No state file was found!", file=sys.stderr)
        sys.exit(1)
    print("aws_vpc.this\ndata.aws_partition.current\nmodule.a.data.aws_partition.x\nmodule.a.aws_vpc.b")
"""

VARIABLES = {"environment": "unit", "admin_principal_arns": ["arn:aws:iam::123456789012:role/x"]}
BACKEND = {"bucket": "b", "key": "k", "region": "us-west-2"}


class Setup:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.binary = folder / "bin" / "terraform"
        self.binary.parent.mkdir()
        self.binary.write_text(FAKE % {"python": sys.executable})
        self.binary.chmod(0o755)
        self.root = folder / "root"
        self.root.mkdir()
        (self.root / "main.tf").write_text("")
        (self.root / ".terraform.lock.hcl").write_text("hashes of the registry")
        (self.root / "terraform.tfstate").write_text("{}")
        self.lines: list[str] = []
        self.env = {"TERRAFORM": str(self.binary), "FAKE_DIR": str(folder), "AWS_SECRET_ACCESS_KEY": "s3cr3t"}

    def terraform(self, *, patience_s: float = 20, **env: str) -> Terraform:
        return Terraform(
            self.root, self.folder / "work", self.env | env,
            progress=self.lines.append, lock_timeout_s=1, patience_s=patience_s,
        )  # fmt: skip

    def calls(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    def last(self, command: str) -> list[str]:
        return [call["args"] for call in self.calls() if call["args"][0] == command][-1]  # type: ignore[index]


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setenv("TF_PLUGIN_DIR", str(tmp_path / "mirror"))
    monkeypatch.setenv("AIRFLOW_CONN_NGC_DEFAULT", "never-for-terraform")
    return Setup(tmp_path)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_from_init_to_apply(setup: Setup) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    plan = terraform.plan(VARIABLES)
    assert plan.changes == [("aws_vpc.this", "create")] and plan.checksum == checksum(terraform.plan_file)
    applied = terraform.apply(expect_checksum=plan.checksum)
    assert (applied.add, applied.applied) == (1, [("aws_vpc.this", "create", 1.0)])
    assert "[1 of 1] created aws_vpc.this in 1 s" in setup.lines
    assert setup.last("apply")[-1] == str(terraform.plan_file)
    assert "-json" in setup.last("plan") and "-input=false" in setup.last("plan")
    assert "-destroy" not in setup.last("plan")


def test_nothing_secret_in_argv_and_nothing_of_airflow_in_the_environment(setup: Setup) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    terraform.plan(VARIABLES)
    for call in setup.calls():
        assert "s3cr3t" not in json.dumps(call["args"]) and "role/x" not in json.dumps(call["args"])
        assert "never-for-terraform" not in json.dumps(call["env"])
        assert call["env"]["AWS_SECRET_ACCESS_KEY"] == "s3cr3t"  # type: ignore[index]
        assert call["env"]["TF_IN_AUTOMATION"] == "1" and call["env"]["CHECKPOINT_DISABLE"] == "1"  # type: ignore[index]


def test_credentials_are_fetched_for_each_command(setup: Setup) -> None:
    """Those that a task began with may have ended when its apply begins."""
    fetched: list[str] = []

    def env() -> dict[str, str]:
        fetched.append(f"token-{len(fetched)}")
        return setup.env | {"AWS_SESSION_TOKEN": fetched[-1]}

    terraform = Terraform(setup.root, setup.folder / "work", env, progress=setup.lines.append)
    terraform.init(BACKEND)
    terraform.plan(VARIABLES)
    terraform.apply()
    commands = [call for call in setup.calls() if call["args"][0] in ("init", "plan", "apply")]  # type: ignore[index]
    used = [call["env"]["AWS_SESSION_TOKEN"] for call in commands]  # type: ignore[index]
    assert len(set(used)) == len(used) == 3 and used[-1] == fetched[-1]
    assert not any("token-" in str(call["args"]) for call in setup.calls()) and "token-" not in str(setup.lines)


def test_keys_of_a_connection_are_not_mixed_with_the_worker_s_own(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS refuses keys with another's token, and terraform takes a profile's before those that it is given."""
    worker = {"AWS_ACCESS_KEY_ID": "worker", "AWS_SECRET_ACCESS_KEY": "worker", "AWS_SESSION_TOKEN": "worker",
              "AWS_SECURITY_TOKEN": "worker", "AWS_PROFILE": "worker", "AWS_CA_BUNDLE": "bundle"}  # fmt: skip
    for name, value in worker.items():
        monkeypatch.setenv(name, value)
    setup.terraform(AWS_ACCESS_KEY_ID="given").init(BACKEND)
    del setup.env["AWS_SECRET_ACCESS_KEY"]
    setup.terraform().init(BACKEND | {"key": "other"})
    seen = [{name: call["env"].get(name) for name in worker} for call in setup.calls() if call["args"][0] == "init"]  # type: ignore[index, attr-defined]
    given = {"AWS_ACCESS_KEY_ID": "given", "AWS_SECRET_ACCESS_KEY": "s3cr3t", "AWS_CA_BUNDLE": "bundle"}
    assert seen == [dict.fromkeys(worker) | given, worker]


def test_files_with_values_are_private_and_include_stays_untouched(setup: Setup) -> None:
    terraform = setup.terraform()
    before = sorted(path.name for path in setup.root.iterdir())
    terraform.init(BACKEND)
    terraform.plan(VARIABLES)
    for name in ("variables.tfvars.json", "backend.tfbackend.json", "plan.tfplan", "plan.summary.json"):
        assert stat.S_IMODE((setup.folder / "work" / name).stat().st_mode) == 0o600, name
    assert sorted(path.name for path in setup.root.iterdir()) == before
    copied = sorted(path.name for path in (setup.folder / "work" / "root").iterdir())
    # A mirror has other hashes than a committed lock file; state files are never carried along.
    assert copied == ["main.tf"]


def test_the_copy_forgets_files_that_the_root_has_lost(setup: Setup) -> None:
    terraform = setup.terraform()
    (setup.root / "old.tf").write_text("")
    terraform.init(BACKEND)
    (setup.root / "old.tf").unlink()
    terraform.init(BACKEND)
    assert not (setup.folder / "work" / "root" / "old.tf").exists()


def test_a_state_that_could_not_be_uploaded_is_brought_in(setup: Setup) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    (terraform.copy / "errored.tfstate").write_text('{"lineage": "", "serial": 0}')
    terraform.init(BACKEND)
    assert terraform.brought_home == StateMark("l-1", 3)
    assert [call["args"][1] for call in setup.calls() if call["args"][0] == "state"] == ["push", "pull"]  # type: ignore[index]
    assert not (terraform.copy / "errored.tfstate").exists()


def test_another_plan_file_is_refused(setup: Setup) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    plan = terraform.plan(VARIABLES)
    terraform.plan_file.write_text("another")
    with pytest.raises(TerraformFailed) as caught:
        terraform.apply(expect_checksum=plan.checksum)
    assert caught.value.reason == "plan-changed"
    terraform.plan_file.unlink()
    with pytest.raises(TerraformFailed) as caught:
        terraform.apply()
    assert caught.value.reason == "plan-missing"


def test_destroy_plans_the_destruction(setup: Setup) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    terraform.destroy(VARIABLES)
    assert "-destroy" in setup.last("plan") and setup.last("apply")


def test_outputs_without_the_sensitive_ones(setup: Setup) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    assert terraform.output() == {"region": "us-west-2"}


@pytest.mark.parametrize("command", ["show", "output", "state_mark"])
def test_values_never_have_a_name_on_disk(setup: Setup, command: str) -> None:
    """What lies there at a moment is what a SIGKILL would leave: `state pull` tells the whole state."""
    secret = "sesame-open-9"
    terraform = setup.terraform(FAKE_SECRET=secret)
    terraform.init(BACKEND)
    terraform.plan(VARIABLES)
    (setup.folder / "hang-telling").touch()
    caught: list[str] = []

    def ask() -> None:
        with pytest.raises(TerraformUnavailable) as killed:
            getattr(terraform, command)()
        caught.append(f"{killed.value.reason} {killed.value}")

    def found() -> list[Path]:
        files = (one for one in (setup.folder / "work").rglob("*") if one.is_file())
        return [one for one in files if secret.encode() in one.read_bytes()]

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until((setup.folder / "told").exists)
    assert found() == []
    os.killpg(json.loads((setup.folder / "work" / "running.json").read_text())["pid"], signal.SIGKILL)
    thread.join(20)
    assert caught and caught[0].startswith("terraform-killed") and secret not in caught[0] and found() == []


def test_state_list(setup: Setup) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    assert terraform.state_list() == ["aws_vpc.this", "module.a.aws_vpc.b"]
    (setup.folder / "empty").touch()
    assert terraform.state_list() == []


def test_terraform_missing_or_too_old(setup: Setup) -> None:
    with pytest.raises(ToolMissing) as caught:
        setup.terraform(TERRAFORM=str(setup.folder / "nowhere")).init(BACKEND)
    assert "1.11" in caught.value.hint
    with pytest.raises(ToolMissing) as caught:
        setup.terraform(FAKE_VERSION="1.5.7").init(BACKEND)
    assert caught.value.reason == "tool-too-old" and "1.5.7" in caught.value.message


def test_a_folder_without_a_root_module(setup: Setup) -> None:
    (setup.root / "main.tf").unlink()
    with pytest.raises(TerraformFailed) as caught:
        setup.terraform().init(BACKEND)
    assert caught.value.reason == "root-missing"


def hanging_apply(setup: Setup) -> tuple[Terraform, threading.Thread, list[TerraformUnavailable]]:
    """An apply in a thread of its own that has begun and does not come to its end; with what it will have raised."""
    terraform = setup.terraform()
    terraform.init(BACKEND)
    terraform.plan(VARIABLES)
    (setup.folder / "hang").touch()
    caught: list[TerraformUnavailable] = []

    def apply() -> None:
        try:
            terraform.apply()
        except TerraformUnavailable as error:
            caught.append(error)

    thread = threading.Thread(target=apply)
    thread.start()
    wait_until(lambda: any("creating aws_vpc.this" in line for line in setup.lines))
    return terraform, thread, caught


def test_stop_sends_one_sigint_and_waits_for_the_end(setup: Setup) -> None:
    terraform, thread, caught = hanging_apply(setup)
    for _ in range(3):
        terraform.stop()
    thread.join(20)
    assert [error.reason for error in caught] == ["terraform-interrupted"]
    assert (setup.folder / "sigints").read_text() == "1"
    assert not (setup.folder / "work" / "running.json").exists()


def test_a_stop_between_two_commands_is_not_forgotten(setup: Setup) -> None:
    """Airflow kills the worker seconds later: what was begun in them would be watched by nobody."""
    terraform = setup.terraform()
    terraform.init(BACKEND)
    terraform.plan(VARIABLES)
    terraform.stop()
    with pytest.raises(TerraformUnavailable) as stopped:
        terraform.apply()
    assert stopped.value.reason == "terraform-interrupted"
    assert not [call for call in setup.calls() if call["args"][0] == "apply"]  # type: ignore[index]


def test_a_stop_while_a_command_is_being_started_reaches_it(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    terraform.plan(VARIABLES)
    (setup.folder / "hang").touch()
    start = subprocess.Popen
    begun: list[subprocess.Popen[bytes]] = []

    def stopped_meanwhile(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        begun.append(start(*args, **kwargs))
        terraform.stop()
        return begun[0]

    monkeypatch.setattr("nim_rollouts.clients.terraform_process.subprocess.Popen", stopped_meanwhile)
    caught: list[TerraformUnavailable] = []

    def apply() -> None:
        with pytest.raises(TerraformUnavailable) as stopped:
            terraform.apply()
        caught.append(stopped.value)

    thread = threading.Thread(target=apply)
    thread.start()
    thread.join(20)
    if thread.is_alive():
        os.killpg(begun[0].pid, signal.SIGKILL)
        thread.join()
    assert [error.reason for error in caught] == ["terraform-interrupted"]


def test_an_exception_in_the_worker_stops_terraform_too(setup: Setup) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    terraform.plan(VARIABLES)
    (setup.folder / "hang").touch()

    def fail(line: str) -> None:
        if "creating" in line:
            raise KeyboardInterrupt

    terraform.say = fail
    with pytest.raises(KeyboardInterrupt):
        terraform.apply()
    assert (setup.folder / "sigints").read_text() == "1"


WORKER = """
import sys
from nim_rollouts.clients.terraform import Terraform
terraform = Terraform({root!r}, {work!r}, {env!r}, progress=lambda line: print(line, flush=True), lock_timeout_s=1)
terraform.init({backend!r})
terraform.plan({{}})
terraform.apply()
"""


def worker(setup: Setup, root: Path) -> subprocess.Popen[str]:
    (setup.folder / "hang").touch()
    code = WORKER.format(root=str(setup.root), work=str(setup.folder / "work"), env=setup.env, backend=BACKEND)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root / "plugins")},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "creating aws_vpc.this" in line:
            return process
    raise AssertionError("the worker ended early")


def test_sigterm_of_the_worker_is_handed_on_as_one_sigint(setup: Setup, root: Path) -> None:
    process = worker(setup, root)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM
    assert (setup.folder / "sigints").read_text() == "1"


def outlived(setup: Setup, root: Path) -> dict[str, Any]:
    """What is written down of an apply whose worker was killed, and which goes on."""
    process = worker(setup, root)
    process.kill()
    process.wait(20)
    record: dict[str, Any] = json.loads((setup.folder / "work" / "running.json").read_text())
    return record


def in_background(terraform: Terraform) -> tuple[threading.Thread, list[Exception | None]]:
    """An init in a thread of its own, and how it will have ended."""
    ended: list[Exception | None] = []

    def init() -> None:
        try:
            terraform.init(BACKEND)
            ended.append(None)
        except TerraformUnavailable as error:
            ended.append(error)

    thread = threading.Thread(target=init)
    thread.start()
    return thread, ended


def test_terraform_outlives_a_killed_worker_and_the_next_waits_for_it(
    setup: Setup, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than for somebody's lock: its apply may have another 20 minutes to go. Told meanwhile in its own words."""
    monkeypatch.setattr("nim_rollouts.clients.terraform_earlier._TELL_S", 1.0)
    record = outlived(setup, root)
    waiting = setup.terraform()
    assert waiting.lock_timeout_s < 3 < waiting.patience_s
    thread, ended = in_background(waiting)
    wait_until(lambda: sum("is still at work: creating aws_vpc.this" in line for line in setup.lines) == 3)
    assert ended == [] and f"(pid {record['pid']})" in setup.lines[0]
    os.killpg(record["pid"], signal.SIGINT)
    thread.join(20)
    assert ended == [None] and (setup.folder / "sigints").exists()
    assert not (setup.folder / "work" / "running.json").exists()


def test_an_earlier_terraform_that_does_not_end_is_named(setup: Setup, root: Path) -> None:
    assert Terraform(setup.root, setup.folder / "other", {}).patience_s >= 45 * 60
    record = outlived(setup, root)
    with pytest.raises(TerraformUnavailable) as caught:
        setup.terraform(patience_s=0).init(BACKEND)
    assert caught.value.reason == "terraform-busy" and str(record["pid"]) in caught.value.message
    os.killpg(record["pid"], signal.SIGINT)
    wait_until((setup.folder / "sigints").exists)


def test_a_stop_ends_the_wait_and_not_what_is_waited_for(setup: Setup, root: Path) -> None:
    record = outlived(setup, root)
    waiting = setup.terraform()
    thread, ended = in_background(waiting)
    wait_until(lambda: any("waiting for an earlier terraform apply" in line for line in setup.lines))
    waiting.stop()
    thread.join(4)  # Airflow kills after five seconds
    assert [getattr(one, "reason", "") for one in ended] == ["terraform-interrupted"]
    assert not (setup.folder / "sigints").exists()
    os.killpg(record["pid"], signal.SIGINT)
    wait_until((setup.folder / "sigints").exists)


@pytest.mark.timeout(60)
def test_plugins_that_a_killed_terraform_left_are_ended(
    setup: Setup, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold the guard: without this every later try would find it busy."""
    monkeypatch.setattr("nim_rollouts.clients.terraform_earlier._PROCESSES_S", 0.5)
    (setup.folder / "plugin").touch()
    process = worker(setup, root)
    noted = setup.folder / "plugin-pid"
    wait_until(lambda: noted.exists() and noted.read_text() != "")
    plugin = psutil.Process(int(noted.read_text()))
    process.kill()
    process.wait(20)
    record = json.loads((setup.folder / "work" / "running.json").read_text())
    for one in psutil.Process(record["pid"]).children(recursive=True):
        if one != plugin:
            one.kill()
    assert plugin.is_running()
    setup.terraform().init(BACKEND)
    assert not plugin.is_running() and any(f"killed (pid {plugin.pid})" in line for line in setup.lines)
    assert not (setup.folder / "work" / "running.json").exists()


@pytest.mark.parametrize(
    ("who", "created", "ours"),
    [("me@here", 1000.5, True), ("me@here", 2000.0, False), ("me@there", 1000.5, False), ("me@here", None, False)],
)
def test_only_the_lock_of_our_own_dead_process_is_ours(who: str, created: float | None, ours: bool) -> None:
    assert own_lock({"who": "me@here", "started": 1000.0}, who, created) is ours
    assert not own_lock(None, who, created)


def test_plugin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_PLUGIN_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("nim_rollouts.clients.terraform_workdir._MIRROR_ROOTS", ("~",))
    monkeypatch.setattr("nim_rollouts.clients.terraform_workdir._MIRRORS", ("~/.terraform.d/plugins",))
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert find_plugin_dir({}) is None
    for name, machine in (("a-tf-plugins", "linux_arm64"), ("tf-plugins", "linux_amd64")):
        (tmp_path / name / "registry.example/hashicorp/aws/5.100.0" / machine).mkdir(parents=True)
    assert find_plugin_dir({}) == tmp_path / "tf-plugins"  # the other one is for another machine
    assert find_plugin_dir({"TF_PLUGIN_DIR": "/given"}) == Path("/given")


def test_an_init_is_not_repeated_while_nothing_has_changed(setup: Setup) -> None:
    def inits() -> int:
        return sum(call["args"][0] == "init" for call in setup.calls())  # type: ignore[index]

    def ready(lock: str = "hashes") -> None:
        """What terraform's own init leaves."""
        (setup.folder / "work" / "root" / ".terraform.lock.hcl").write_text(lock)
        (setup.folder / "work" / "data" / "providers" / "host" / "ns" / "aws" / "5.100.0" / "linux").mkdir(parents=True)
        terraform.files.initialised(mark["fingerprint"])

    terraform = setup.terraform()
    terraform.init(BACKEND)
    mark = json.loads((setup.folder / "work" / "initialised.json").read_text())
    ready()
    setup.terraform().init(BACKEND)
    assert inits() == 1 and terraform.lock_file() == b"hashes"
    # The provider versions of the plan that is to be applied, on a worker that has chosen the same, and others.
    setup.terraform().init(BACKEND, lock_file=b"hashes")
    assert inits() == 1
    setup.terraform().init(BACKEND, lock_file=b"others")
    assert inits() == 2 and terraform.lock_file() == b"others"
    setup.terraform().init(BACKEND | {"key": "another"})
    assert inits() == 3
    (setup.root / "main.tf").write_text("# changed")
    setup.terraform().init(BACKEND | {"key": "another"})
    assert inits() == 4


def test_the_state_that_an_apply_left_is_noted(setup: Setup) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    assert terraform.left() is None
    plan = terraform.plan(VARIABLES)
    assert (plan.lineage, plan.serial) == ("l-1", 3)  # of a plan file that is none: asked for
    terraform.apply()
    left = terraform.left()
    assert left is not None and (left.lineage, left.serial, left.checksum) == ("l-1", 3, plan.checksum)


def test_a_terraform_that_was_killed_is_remembered_until_the_lock_is_known_to_be_free(setup: Setup, root: Path) -> None:
    process = worker(setup, root)
    record = json.loads((setup.folder / "work" / "running.json").read_text())
    os.killpg(record["pid"], signal.SIGKILL)
    assert process.wait(20) != 0
    [ended] = json.loads((setup.folder / "work" / "ended.json").read_text())
    assert (ended["pid"], ended["name"]) == (record["pid"], "apply")
    (setup.folder / "hang").unlink()
    terraform = setup.terraform()
    terraform.init(BACKEND)
    terraform.drift(VARIABLES)
    assert (setup.folder / "work" / "ended.json").exists()  # neither takes the lock: nothing is known yet
    terraform.plan(VARIABLES)
    assert "-lock-timeout=0s" in setup.last("plan")
    assert not (setup.folder / "work" / "ended.json").exists()
    terraform.plan(VARIABLES)
    assert "-lock-timeout=1s" in setup.last("plan")


@pytest.mark.parametrize(
    ("fails", "serial", "began"),
    [
        ("at once", 3, False),
        ("half-way", 3, True),
        ("at once", 2, True),  # an import, an output: no step, but another state than the plan's
    ],
)
def test_whether_a_failed_apply_has_begun(setup: Setup, fails: str, serial: int, began: bool) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    terraform.plan(VARIABLES)
    with zipfile.ZipFile(terraform.plan_file, "w") as plan:
        plan.writestr("tfstate", json.dumps({"lineage": "l-1", "serial": serial}))
    (setup.folder / "fails").write_text(fails)
    with pytest.raises(TerraformFailed):
        terraform.apply()
    assert terraform.began is began
    assert (terraform.left() is not None) is began, "a state that we did not leave is not noted as ours"


def test_a_killed_apply_may_have_begun_and_a_plan_that_is_not_the_one_has_not(setup: Setup) -> None:
    terraform, thread, caught = hanging_apply(setup)
    os.killpg(json.loads((setup.folder / "work" / "running.json").read_text())["pid"], signal.SIGKILL)
    thread.join(20)
    assert caught and terraform.began
    with pytest.raises(TerraformFailed, match="another than"):
        terraform.apply(expect_checksum="0" * 64)
    assert not terraform.began


def test_what_a_killed_terraform_amounts_to(setup: Setup) -> None:
    _, thread, caught = hanging_apply(setup)
    os.killpg(json.loads((setup.folder / "work" / "running.json").read_text())["pid"], signal.SIGKILL)
    thread.join(20)
    assert [error.reason for error in caught] == ["terraform-killed"]


def test_a_drift_check_saves_no_plan(setup: Setup) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    assert terraform.drift(VARIABLES).changes == [("aws_vpc.this", "create")]
    assert "-detailed-exitcode" in setup.last("plan") and not any("-out" in one for one in setup.last("plan"))
    locking = [one for one in setup.last("plan") if one.startswith("-lock")]
    assert locking == ["-lock=false"], "a lock that it left would be in a rollout's way"
