"""A small program in terraform's place, and what tests of the client begin with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nim_rollouts.clients.terraform import Terraform
from nim_rollouts.core.errors import TerraformUnavailable

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
    if (here / "fails").read_text() == "at the end":
        say(type="change_summary", changes={"add": 0, "import": 1, "operation": "apply"})
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
    has = {"vpc-2": "data.aws_vpc.theirs\nmodule.a.aws_vpc.b"}
    all = "aws_vpc.this\ndata.aws_partition.current\nmodule.a.data.aws_partition.x\nmodule.a.aws_vpc.b"
    print(has.get(args[2].removeprefix("-id="), "") if args[2:] else all)
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


def outlived(setup: Setup, root: Path) -> dict[str, Any]:
    """What is written down of an apply whose worker was killed, and which goes on."""
    process = worker(setup, root)
    process.kill()
    process.wait(20)
    record: dict[str, Any] = json.loads((setup.folder / "work" / "running.json").read_text())
    return record
