"""The terraform client with a small program in terraform's place: files, arguments, credentials, versions."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from nim_rollouts.clients.terraform import StateMark, Terraform, find_plugin_dir
from nim_rollouts.clients.terraform_workdir import checksum
from nim_rollouts.core.errors import TerraformFailed, ToolMissing
from tests.unit.clients.terraform_fake import (
    BACKEND,
    VARIABLES,
    Setup,
    setup,
)

__all__ = ["setup"]


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


def test_state_list(setup: Setup) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    assert terraform.state_list() == ["aws_vpc.this", "module.a.aws_vpc.b"]
    assert terraform.state_list("vpc-2") == ["module.a.aws_vpc.b"], "what is only read is not managed"
    assert terraform.state_list("vpc-3") == []
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


def test_a_drift_check_saves_no_plan(setup: Setup) -> None:
    terraform = setup.terraform()
    terraform.init(BACKEND)
    assert terraform.drift(VARIABLES).changes == [("aws_vpc.this", "create")]
    assert "-detailed-exitcode" in setup.last("plan") and not any("-out" in one for one in setup.last("plan"))
    locking = [one for one in setup.last("plan") if one.startswith("-lock")]
    assert locking == ["-lock=false"], "a lock that it left would be in a rollout's way"


def test_a_plan_from_elsewhere_lies_in_the_work_folder_for_its_owner_alone_and_no_longer_than_it_is_wanted(
    setup: Setup,
) -> None:
    terraform = setup.terraform()
    left = setup.folder / "work" / "saved.tfplan"
    left.parent.mkdir(exist_ok=True)
    left.write_text("of a worker that was killed")
    with terraform.saved_plan(b"plan") as file:
        assert file == left and file.read_bytes() == b"plan"
        assert file.stat().st_mode & 0o777 == 0o600
    assert not left.exists()
