"""The terraform roots: formatted, valid, and refusing bad values with what is wrong. Needs terraform, no network."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from nim_rollouts.clients.terraform import find_plugin_dir

MIRROR = find_plugin_dir({})
ROOTS = ("bootstrap", "eks")
pytestmark = pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")


def terraform(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["terraform", *argv], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", ROOTS)
def test_formatted(root: Path, name: str) -> None:
    result = terraform("fmt", "-check", "-diff", cwd=root / "include" / "terraform" / name)
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


def test_good_values_are_taken(initialised: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "values.tfvars.json"
    file.write_text(json.dumps(GOOD))
    shutil.copy(initialised["eks"] / "variables.tf", tmp_path)
    assert terraform("plan", "-input=false", f"-var-file={file}", cwd=tmp_path).returncode == 0
