"""The terraform roots: formatted, valid, and refusing bad values with what is wrong. Needs terraform, no network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nim_rollouts.clients.terraform import find_plugin_dir
from scripts.terraform_docs import MODULE, PAGE, page, tables

MIRROR = find_plugin_dir({})
ROOTS = ("bootstrap", "eks")
pytestmark = pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")


def terraform(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["terraform", *argv], cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("name", ROOTS)
def test_formatted(root: Path, name: str) -> None:
    result = terraform("fmt", "-check", "-diff", "-recursive", cwd=root / "include" / "terraform" / name)
    assert result.returncode == 0, result.stdout


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    if MIRROR is None:
        pytest.skip("no mirror of the AWS provider, and a unit test does not download one")
    include = Path(__file__).resolve().parents[2] / "include" / "terraform"
    folders = {}
    for name in ROOTS:
        folders[name] = tmp_path_factory.mktemp(name) / "root"
        shutil.copytree(include / name, folders[name], ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*"))
        result = terraform("init", "-backend=false", f"-plugin-dir={MIRROR}", "-no-color", cwd=folders[name])
        assert result.returncode == 0, result.stderr
    return folders


@pytest.mark.parametrize("name", ROOTS)
def test_valid(initialised: dict[str, Path], name: str) -> None:
    result = json.loads(terraform("validate", "-json", cwd=initialised[name]).stdout)
    assert result["valid"] and result["warning_count"] == 0, result["diagnostics"]


def test_plans_hold_what_the_module_promises(initialised: dict[str, Path]) -> None:
    """include/terraform/eks/tests: the real provider plans, with no account."""
    result = terraform("test", "-no-color", cwd=initialised["eks"])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 failed" in result.stdout


def test_the_state_is_encrypted_as_its_bucket_says(root: Path) -> None:
    """The bootstrap's `kms_key_arn` is the bucket's default; `encrypt` alone names AES256 for each object, over it."""
    text = (root / "include" / "terraform" / "eks" / "versions.tf").read_text()
    (backend,) = re.findall(r'backend "s3" \{([^}]*)\}', text)
    assert re.findall(r"^\s*(\w+)\s*=", backend, re.M) == ["use_lockfile"]


@pytest.mark.parametrize("name", ROOTS)
def test_every_variable_and_output_is_described(root: Path, name: str) -> None:
    folder = root / "include" / "terraform" / name
    for file, kind in (("variables.tf", "variable"), ("outputs.tf", "output")):
        for block in (folder / file).read_text().split(f'\n{kind} "')[1:]:
            assert "description =" in block, f"{name}/{file}: {block.splitlines()[0]}"


GOOD = {"environment": "unit", "admin_principal_arns": ["arn:aws:iam::123456789012:role/airflow"]}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"environment": "Not_Good"}, "environment must be"),
        ({"admin_principal_arns": []}, "Name at least one administrator"),
        ({"admin_principal_arns": ["arn:aws:sts::123456789012:assumed-role/a/b"]}, "not of an STS session"),
        ({"cluster_version": "1.19"}, "cluster_version must be"),
        ({"availability_zones": ["us-west-2a"]}, "at least two different zones"),
        ({"availability_zones": ["us-west-2a", "us-east-1a"]}, "must be zones of the region"),
        ({"secondary_cidr": "10.1.0.0/16"}, "inside 100.64.0.0/10, or null"),
        ({"vpc_cidr": "100.70.0.0/16"}, "outside 100.64.0.0/10"),
        ({"log_retention_days": 31}, "a period that CloudWatch knows"),
        ({"system_nodes": {"instance_types": []}}, "at least one instance type"),
        ({"grafana": {"password_version": 0}}, "a whole number from 1 on"),
        ({"tags": {"nim-rollouts/environment": "other"}}, "neither nim-rollouts/environment"),
        ({"vpc_cidr": "10.0.0.0/28"}, "vpc_cidr must be"),
        ({"nat_gateways": "two"}, "nat_gateways must be"),
        ({"addons": {"coredns": {"configuration_values": "{"}}}, "must be a JSON document"),
    ],
)
def test_bad_values_are_refused(
    initialised: dict[str, Path], tmp_path: Path, values: dict[str, object], says: str
) -> None:
    # The variables alone: their conditions are evaluated, and nothing asks AWS.
    file = tmp_path / "values.tfvars.json"
    file.write_text(json.dumps(GOOD | values))
    folder = tmp_path / "variables-only"
    folder.mkdir()
    shutil.copy(initialised["eks"] / "variables.tf", folder)
    plan = terraform("plan", "-input=false", "-no-color", f"-var-file={file}", cwd=folder)
    assert plan.returncode == 1
    assert says in " ".join(plan.stderr.split())


def test_the_page_on_the_module_is_current() -> None:
    assert PAGE.read_text() == page(PAGE.read_text(), MODULE), "run `python -m scripts.terraform_docs`"


def test_the_page_has_every_variable_output_and_resource(root: Path) -> None:
    text = "".join(path.read_text() for path in (root / "include" / "terraform" / "eks").glob("*.tf"))
    told = tables(MODULE)
    named = re.findall(r'^(?:variable|output) "(\w+)"', text, re.M)
    made = [".".join(pair) for pair in re.findall(r'^(?:resource|ephemeral) "(\w+)" "(\w+)"', text, re.M)]
    assert named and made and [name for name in named + made if f"`{name}`" not in told] == []


def test_good_values_are_taken(initialised: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "values.tfvars.json"
    file.write_text(json.dumps(GOOD))
    shutil.copy(initialised["eks"] / "variables.tf", tmp_path)
    assert terraform("plan", "-input=false", f"-var-file={file}", cwd=tmp_path).returncode == 0
