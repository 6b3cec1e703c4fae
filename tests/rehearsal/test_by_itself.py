"""The rehearsal without Airflow: what a person does by hand with terraform, Helm and two manifests works.

The person is bench-overhead's script.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.overhead.ground import prepare, run_script
from nim_rollouts.clients.include import Include
from nim_rollouts.clients.terraform import Terraform
from nim_rollouts.core import report
from rehearsal import config, supervisor
from rehearsal.aws.environment import environment as aws_environment
from rehearsal.aws.inventory import inventory
from rehearsal.config import Rehearsal
from rehearsal.kube import Kube, NotFound, Obj, path, path_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE, NAME = "nim-service", "meta-llama3-8b-instruct"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    state = tmp_path_factory.mktemp("bare")
    env = {**os.environ, "REHEARSAL_STATE": str(state), "PYTHONPATH": str(ROOT)}
    rehearsal = [sys.executable, "-m", "rehearsal"]
    try:
        subprocess.run([*rehearsal, "up", "--without-airflow"], cwd=ROOT, env=env, check=True, timeout=120)
        yield config.load(state)
    finally:
        subprocess.run([*rehearsal, "down"], cwd=ROOT, env=env, check=True, timeout=120)
    assert supervisor.leftovers(state) == []


async def until(look: Callable[[], Awaitable[Any]], what: str, seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := await look()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        await asyncio.sleep(0.5)
    return found


async def state_of(kube: Kube, kind: str) -> str:
    obj = await kube.get(path_of("apps.nvidia.com/v1alpha1", kind, NAMESPACE, NAME))
    return str(obj.get("status", {}).get("state", ""))


def test_terraform_helm_and_two_manifests_lead_to_a_measured_service(bare: Rehearsal, tmp_path: Path) -> None:
    include = Include()
    environment, deployment = include.environment("rehearsal"), include.deployment(NAME)
    before = inventory(bare)
    work = tmp_path / "by-hand"
    run_script(work, prepare(bare, work, environment, deployment), 480)
    planned = re.search(r"Plan: (\d+) to add, \d+ to change, (\d+) to destroy", (work / "by_hand.log").read_text())
    assert planned and int(planned[1]) > 20 and int(planned[2]) == 0
    env = {**os.environ, **aws_environment(bare.url("aws"))}
    terraform = Terraform(include.path(environment.terraform.root), tmp_path / "tf", env)
    state = environment.terraform.state
    terraform.init({"bucket": state.bucket, "key": state.key, "region": environment.region, "use_lockfile": True})
    assert "aws eks update-kubeconfig" in terraform.output()["configure_kubectl"]
    asyncio.run(_serves(bare))
    measured = report.parse_report(report.extract_report((work / "report.log").read_text()))
    assert (measured.done, measured.errors) == (100, 0)
    asyncio.run(_remove(bare))

    terraform.destroy(environment.terraform.variables)
    assert terraform.state_list() == []
    after = inventory(bare)
    assert after == before, "terraform destroy left something behind"


async def _serves(r: Rehearsal) -> None:
    async with Kube.from_rehearsal(r) as kube:
        for kind in ("NIMCache", "NIMService"):
            assert await state_of(kube, kind) == "Ready"
        pods = await kube.list(f"/api/v1/namespaces/{NAMESPACE}/pods", label_selector=f"app={NAME}")
        nodes = {n["metadata"]["name"]: n for n in await kube.list("/api/v1/nodes")}
        node = nodes[pods[0]["spec"]["nodeName"]]
        assert node["status"]["capacity"]["nvidia.com/gpu"] == "4"
        assert node["metadata"]["labels"]["instanceType"] == "g5-gpu-karpenter"


async def _remove(r: Rehearsal) -> None:
    async with Kube.from_rehearsal(r) as kube:
        for kind in ("NIMService", "NIMCache"):
            await kube.delete(path_of("apps.nvidia.com/v1alpha1", kind, NAMESPACE, NAME))

        async def gone() -> bool:
            left = [await kube.list(path_of("apps.nvidia.com/v1alpha1", k)) for k in ("NIMCache", "NIMService")]
            volumes = await kube.list("/api/v1/persistentvolumes")
            return not any(left) and not volumes

        await until(gone, "custom resources and volumes gone")
        with pytest.raises(NotFound):
            await kube.get(path_of("v1", "PersistentVolumeClaim", NAMESPACE, f"{NAME}-pvc"))

        async def no_gpu_node() -> bool:
            nodes = await kube.list("/api/v1/nodes")
            return not any("nvidia.com/gpu" in n["status"]["capacity"] for n in nodes)

        await until(no_gpu_node, "GPU nodes gone")
        pools, claims = path_of("karpenter.sh/v1", "NodePool"), path_of("karpenter.sh/v1", "NodeClaim")
        classes = path_of("karpenter.k8s.aws/v1", "EC2NodeClass")
        # Pools first, while their Karpenter runs: it lets go of the nodes, and then of what the classes made in AWS.
        for collection, leave in ((pools, claims), (classes, classes)):
            for one in await kube.list(collection):
                await kube.delete(path(one))
            await until(lambda leave=leave: _empty(kube, leave), f"{leave} empty")


async def _empty(kube: Kube, collection: str) -> bool:
    return not await kube.list(collection)


def test_unknown_fields_are_refused_under_strict_validation(bare: Rehearsal) -> None:
    async def apply(obj: Obj) -> None:
        async with Kube.from_rehearsal(bare) as kube:
            await kube.request("POST", path_of(obj["apiVersion"], obj["kind"], "default"), body=obj,
                               fieldValidation="Strict", dryRun="All")  # fmt: skip

    blueprint = next(yaml.safe_load_all((ROOT / "tests/rehearsal/blueprint.yaml").read_text()))
    blueprint["metadata"]["namespace"] = "default"
    asyncio.run(apply(blueprint))
    wrong = json.loads(json.dumps(blueprint))
    wrong["spec"]["storage"]["pvc"]["sizes"] = "50Gi"
    with pytest.raises(Exception, match="sizes"):
        asyncio.run(apply(wrong))
