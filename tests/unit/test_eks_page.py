"""docs/eks.md against what it tells of: outputs, DAG params, keys of an environment, policies, prices.

Every output of the root module is for something: the product's, or a user's, who is told of it there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nim_rollouts.core.environment import Environment, load_environment

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "include"
PAGE = (ROOT / "docs" / "eks.md").read_text()
OUTPUTS = re.findall(r'^output "(\w+)"', (INCLUDE / "terraform" / "eks" / "outputs.tf").read_text(), re.M)


def used_by_the_product() -> set[str]:
    """Outputs that a source reads from terraform's, or that an environment's add-on takes a value from."""
    found: set[str] = set()
    for path in (ROOT / "plugins").rglob("*.py"):
        text = path.read_text()
        found |= set(re.findall(r"outputs?(?:\.get\(|\[)\s*[\"'](\w+)[\"']", text))
        if "outputs" in text:
            # Listed apart from where they are read. Words without a dash below are too common to be taken for one.
            found |= {word for word in re.findall(r"[\"'](\w+_\w+)[\"']", text) if word not in ("cluster_name",)}
    for path in (INCLUDE / "environments").glob("*.yaml"):
        for addon in yaml.safe_load(path.read_text()).get("addons") or ():
            found |= set((addon.get("values_from") or {}).values())
            found |= {secret.get("from_output") for secret in addon.get("secrets") or ()}
    return found & set(OUTPUTS)


def told_to_users() -> dict[str, str]:
    """Output -> what the page says it is for."""
    table = PAGE.partition("## What terraform tells you")[2].partition("\n## ")[0]
    rows = [row.split("|")[1:-1] for row in table.splitlines() if row.startswith("| `")]
    return {name: row[1].strip() for row in rows for name in re.findall(r"`(\w+)`", row[0])}


@pytest.mark.parametrize("output", OUTPUTS)
def test_every_output_is_used_or_told_with_its_purpose(output: str) -> None:
    assert output in used_by_the_product() or len(told_to_users().get(output, "")) > 20, (
        f"{output} is read by nothing: use it, tell in docs/eks.md what for, or take it out"
    )


def test_the_page_tells_of_no_output_that_is_not_there() -> None:
    assert set(told_to_users()) <= set(OUTPUTS)
    assert {"efs_file_system_id", "vpc_id", "configure_kubectl"} <= used_by_the_product()
    assert not {"nat_addresses", "cluster_arn", "region"} & used_by_the_product(), "the search takes too much for use"


def test_the_runs_that_it_starts_have_these_params() -> None:
    runs = re.findall(r"airflow dags trigger (\w+) --conf '(\{.*\})'", PAGE)
    assert {dag for dag, _ in runs} == {"nim_deploy", "nim_teardown"}
    for dag, conf in runs:
        wiring = (ROOT / "dags" / f"{dag}.py").read_text()
        for name, value in json.loads(conf).items():
            assert f'"{name}": Param(' in wiring, f"{dag} has no param {name}"
            enum = re.search(rf'"{name}": Param\([^)]*?enum=\[([^\]]*)\]', wiring, re.S)
            assert enum is None or f'"{value}"' in enum[1], f"{name} of {dag} cannot be {value}"


def changed_environment() -> Environment:
    """The example, with what the page changes of it."""
    changes = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.S)[1])  # type: ignore[index]
    example: dict[str, Any] = yaml.safe_load((INCLUDE / "environments" / "nvidia-nim-eks.yaml").read_text())
    example["terraform"]["variables"] = changes["terraform"].pop("variables")
    example["terraform"] |= changes.pop("terraform")
    return load_environment(changes["name"], yaml.safe_dump(example | changes), "nim-lab.yaml")


def test_the_environment_that_it_makes_is_accepted() -> None:
    environment = changed_environment()
    known = set(re.findall(r'^variable "(\w+)"', (INCLUDE / "terraform" / "eks" / "variables.tf").read_text(), re.M))
    assert environment.cluster.name == "nim-lab" and set(environment.terraform.variables) <= known
    assert f"--secret-id {environment.cluster.name}/grafana" in PAGE
    assert '"${var.cluster_name}/grafana"' in (INCLUDE / "terraform" / "eks" / "grafana.tf").read_text()


def test_its_seds_leave_no_name_of_the_example_in_a_policy() -> None:
    changes = re.findall(r"-e 's/([^/]+)/([^/]+)/g'", PAGE)
    environment = changed_environment()
    for name in ("terraform-eks-rights", "worker-rights"):
        text = (ROOT / "docs" / f"{name}.json").read_text()
        for old, new in changes:
            text = text.replace(old, new)
        assert "nvidia" not in text and environment.cluster.name in text
        buckets = set(re.findall(r"arn:aws:s3:::([\w-]+)", text))
        assert buckets == {environment.terraform.state.bucket if "terraform" in name else environment.store.bucket}  # type: ignore[union-attr]
        # What one managed policy may hold; blanks do not count.
        assert len(json.dumps(json.loads(text), separators=(",", ":"))) < 6144


def test_its_prices_are_those_of_the_table() -> None:
    prices = yaml.safe_load((INCLUDE / "prices" / "us-west-2.yaml").read_text())
    hours, kinds = prices["hours_per_month"], prices["resources"]
    node, gpu = prices["instances"]["m6i.large"], prices["instances"]["g5.12xlarge"]
    table = PAGE.partition("## 8. What it costs")[2].partition("\n## ")[0]
    assert f"| {gpu:.2f} | {gpu * hours:,.0f} |" in table
    cluster = kinds["aws_eks_cluster"]["hour"] * hours
    # 50 GB of gp3 each, by default.
    nodes = 2 * node * hours + 2 * 50 * 0.08
    network = (kinds["aws_nat_gateway"]["hour"] + kinds["aws_eip"]["hour"]) * hours
    assert f"| {cluster:.0f} |" in table and f"| {nodes:.0f} |" in table and f"| {network:.1f}," in table
    total = cluster + nodes + network + kinds["aws_secretsmanager_secret"]["month"]
    assert f"**about {total / hours:.2f}** | **about {round(total, -1):.0f}**" in table
