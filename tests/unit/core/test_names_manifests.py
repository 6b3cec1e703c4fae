"""Names and objects: deterministic, complete, and only from data."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nim_rollouts.clients.include import Include
from nim_rollouts.core import manifests
from nim_rollouts.core.environment import Environment, load_environment
from nim_rollouts.core.errors import ManifestError
from nim_rollouts.core.names import content_hash, names_for, rollout_id
from nim_rollouts.core.nimspec import cache_spec, service_spec
from nim_rollouts.core.quantity import canonical_quantity, parse_quantity
from nim_rollouts.core.spec import Deployment, load_deployment
from rehearsal.operator import goform
from rehearsal.operator.quantity import canonical

INCLUDE = Path(__file__).resolve().parents[3] / "include"
NAME = "meta-llama3-8b-instruct"
TEXT = (INCLUDE / "deployments" / f"{NAME}.yaml").read_text()
TEMPLATES = {path.name: path.read_text() for path in (INCLUDE / "manifests").glob("*.yaml")}
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


def load(text: str = TEXT, name: str = NAME) -> Deployment:
    return load_deployment(name, text, "d.yaml")


def context(deployment: Deployment, templates: dict[str, str] | None = None) -> manifests.Context:
    return manifests.Context(
        templates=templates or TEMPLATES,
        names=names_for(deployment, "run-1"),
        deployment=deployment.name,
        environment="prod",
        rollout="run-1",
        generation=7,
    )


OUTPUTS = {"node_role_name": "c-node", "discovery_tag": {"karpenter.sh/discovery": "c"}}


def environment(*pools: str) -> Environment:
    text = (INCLUDE / "environments" / "rehearsal.yaml").read_text()
    return load_environment("rehearsal", text, "e.yaml").model_copy(update={"node_pools": list(pools)})


def test_node_pools_get_the_clusters_role_and_tags_and_no_generation() -> None:
    templates = Include(INCLUDE).templates()
    pools = Include(INCLUDE).node_pools()
    assert {"g5-gpu-karpenter", "g6-gpu-karpenter", "x86-cpu-karpenter", "inferentia-inf2", "trainium-trn1"} <= set(
        pools
    )
    objects = manifests.node_pools(templates, environment(*pools), OUTPUTS)
    assert [obj["kind"] for obj in objects] == ["EC2NodeClass", "NodePool"] * len(pools)
    for node_class, pool in zip(objects[::2], objects[1::2], strict=True):
        assert node_class["spec"]["role"] == "c-node"
        for terms in ("subnetSelectorTerms", "securityGroupSelectorTerms"):
            assert node_class["spec"][terms] == [{"tags": {"karpenter.sh/discovery": "c"}}]
        assert node_class["spec"]["tags"]["nim-rollouts/environment"] == "rehearsal"
        assert pool["spec"]["template"]["spec"]["nodeClassRef"]["name"] == node_class["metadata"]["name"]
        for obj in (node_class, pool):
            assert set(obj["metadata"]) == {"name", "labels"}, "a generation would refuse the neighbour's next run"
            assert obj["metadata"]["labels"]["nim-rollouts/environment"] == "rehearsal"
    assert "put-in" not in json.dumps(objects)
    assert manifests.node_pools(templates, environment(), {}) == []


def test_a_pool_of_another_class_is_refused() -> None:
    file = "node-pools/g5-gpu-karpenter.yaml"
    text = Include(INCLUDE).templates()[file]
    wrong = text.replace("        name: g5-gpu-karpenter", "        name: other")
    with pytest.raises(ManifestError, match="names the node class other"):
        manifests.node_pools({file: wrong}, environment("g5-gpu-karpenter"), OUTPUTS)
    with pytest.raises(ManifestError, match="must hold EC2NodeClass, NodePool"):
        manifests.node_pools({file: "kind: NodePool"}, environment("g5-gpu-karpenter"), OUTPUTS)


def test_hashes_are_canonical_and_versioned() -> None:
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 1}, version=2)
    assert re.fullmatch(r"[0-9a-f]{8}", content_hash({}))


def test_names_of_the_reference_deployment_do_not_move() -> None:
    """A change here re-downloads every cache in every environment: raise HASH_VERSION only on purpose."""
    names = names_for(load(), "run-1")
    assert (names.cache, names.service) == (f"{NAME}-854ad2d7", f"{NAME}-f6e20f68")


@pytest.mark.parametrize(
    ("old", "new", "cache_moves", "service_moves"),
    [
        ("replicas: 1", "replicas: 3", False, False),
        ('tag: "1.3.3"', 'tag: "1.3.4"', True, True),
        ("size: 50Gi", "size: 60Gi", True, True),
        ("node_selector: {instanceType: g5-gpu-karpenter}", "node_selector: {instanceType: x}", False, True),
        ("requests: 100", "requests: 50", False, False),
        ("# ", "# other words ", False, False),
    ],
)
def test_what_moves_a_name(old: str, new: str, cache_moves: bool, service_moves: bool) -> None:
    assert old in TEXT
    before, after = names_for(load(), "r"), names_for(load(TEXT.replace(old, new)), "r")
    assert (before.cache != after.cache, before.service != after.service) == (cache_moves, service_moves)
    assert before.stable_service == after.stable_service == NAME


def test_the_longest_name_leaves_room_for_the_operators_suffixes() -> None:
    name = "a" * 40
    names = names_for(load(TEXT.replace(f"name: {NAME}", f"name: {name}"), name), rollout_id("x" * 200))
    for one in (names.service, f"{names.cache}-manifest", f"{names.cache_job}-abcde", f"{names.benchmark_job}-abcde"):
        assert LABEL.fullmatch(one), one


@pytest.mark.parametrize("run", ["manual__2026-11-23T16:31:10+00:00", "scheduled__x", "Ünïcode/../..", "", "a" * 250])
def test_rollout_ids_are_labels(run: str) -> None:
    assert LABEL.fullmatch(rollout_id(run))
    assert rollout_id(run) == rollout_id(run)
    assert rollout_id(run) != rollout_id(run + "x")


def test_templates_show_what_is_applied() -> None:
    """The files are the reference deployment's own objects, but for the hashes."""
    deployment = load()
    for file, spec in (
        ("nimcache.yaml", cache_spec(deployment)),
        ("nimservice.yaml", service_spec(deployment, f"{NAME}-00000000")),
    ):
        assert yaml.safe_load(TEMPLATES[file])["spec"] == spec


def test_objects_say_whose_they_are() -> None:
    deployment = load()
    ctx = context(deployment)
    own = [
        manifests.nim_cache(ctx, deployment),
        manifests.nim_service(ctx, deployment),
        manifests.stable_service(ctx, deployment),
        *manifests.benchmark(ctx, deployment, {"run.py": b""}),
    ]
    for obj in own:
        assert obj["metadata"]["labels"]["nim-rollouts/deployment"] == NAME
        assert obj["metadata"]["annotations"] == {"nim-rollouts/generation": "7", "nim-rollouts/rollout": "run-1"}
    for obj in (*own, manifests.namespace(ctx), *manifests.secrets(ctx, "nvapi-x")):
        assert obj["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "nim-rollouts"
        assert obj["metadata"]["labels"]["nim-rollouts/environment"] == "prod"


def test_shared_objects_carry_no_generation() -> None:
    """Another deployment's claim counts for itself: its lower generation must not be refused on a shared object."""
    ctx = context(load())
    for obj in (manifests.namespace(ctx), *manifests.secrets(ctx, "nvapi-x")):
        assert "annotations" not in obj["metadata"]


def test_secrets_hold_the_key_as_kubernetes_wants_it() -> None:
    pull, api = manifests.secrets(context(load()), "nvapi-canary")
    config = json.loads(base64.b64decode(pull["data"][".dockerconfigjson"]))["auths"]["nvcr.io"]
    assert config["username"] == "$oauthtoken"
    assert base64.b64decode(config["auth"]).decode() == "$oauthtoken:nvapi-canary"
    assert base64.b64decode(api["data"]["NGC_API_KEY"]).decode() == "nvapi-canary"
    assert "stringData" not in pull and "stringData" not in api


def test_the_service_has_what_the_operator_needs() -> None:
    text = TEXT.replace('    requests: {cpu: "40", nvidia.com/gpu: "2"}\n', "").replace(
        "  node_selector: {instanceType: g5-gpu-karpenter}\n  tolerations:\n"
        "    - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}\nbenchmark",
        "benchmark",
    )
    spec = service_spec(load(text), "c")
    assert spec["resources"]["requests"] == spec["resources"]["limits"] == {"cpu": "40", "nvidia.com/gpu": "2"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert spec["expose"]["service"]["port"] == 8000


def test_the_stable_service_leads_to_the_nimservice() -> None:
    deployment = load()
    service = manifests.stable_service(context(deployment), deployment)
    assert service["metadata"]["name"] == NAME
    assert service["spec"]["selector"] == {"app": names_for(deployment, "run-1").service}
    assert [(port["port"], port["targetPort"]) for port in service["spec"]["ports"]] == [(8000, 8000)]


def test_the_benchmark_is_one_pod_without_a_gpu() -> None:
    deployment = load()
    config, job = manifests.benchmark(context(deployment), deployment, {"run.py": b"x", "tokenizer/t.bin": b"\xff"})
    again = manifests.benchmark(context(deployment), deployment, {"run.py": b"x", "tokenizer/t.bin": b"\xff"})
    assert [config, job] == again
    assert config["data"] == {"run.py": "x"}
    assert base64.b64decode(config["binaryData"]["t.bin"]) == b"\xff"
    spec = job["spec"]
    pod = spec["template"]["spec"]
    assert (spec["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert spec["ttlSecondsAfterFinished"] >= 3600
    assert spec["activeDeadlineSeconds"] > deployment.benchmark.deadline_s
    assert "nvidia.com/gpu" not in json.dumps(job)
    env = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    assert env["BENCH_URL"] == f"http://{NAME}.nim-service:8000"
    assert (env["BENCH_REQUESTS"], env["BENCH_STREAMING"]) == ("100", "true")
    assert pod["volumes"][0]["configMap"]["name"] == config["metadata"]["name"]


def test_files_that_do_not_fit() -> None:
    deployment = load()
    with pytest.raises(ManifestError, match="bytes together"):
        manifests.benchmark(context(deployment), deployment, {"run.py": b"x" * 1_100_000})
    with pytest.raises(ManifestError, match="are named"):
        manifests.benchmark(context(deployment), deployment, {"a/x": b"", "b/x": b""})


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("nimcache.yaml", None, "is missing"),
        ("nimcache.yaml", "a: [", "is not YAML"),
        ("nimcache.yaml", "kind: NIMService", "must hold NIMCache"),
        ("nimcache.yaml", TEMPLATES["nimcache.yaml"] + "  runtimeClassName: x\n", "spec.runtimeClassName"),
    ],
)
def test_templates_that_were_changed(file: str, change: str | None, says: str) -> None:
    templates = {name: text for name, text in TEMPLATES.items() if name != file}
    if change is not None:
        templates[file] = change
    deployment = load()
    with pytest.raises(ManifestError, match=says):
        manifests.nim_cache(context(deployment, templates), deployment)


def test_a_value_cannot_change_the_structure() -> None:
    evil = "x}\nkind: Secret\n#"
    deployment = load()
    profile = deployment.profile.model_copy(update={"precision": evil})
    cache = manifests.nim_cache(context(deployment), deployment.model_copy(update={"profile": profile}))
    assert cache["kind"] == "NIMCache"
    assert cache["spec"]["source"]["ngc"]["model"]["precision"] == evil


def _same(ours: Any, stored: Any) -> bool:
    if isinstance(ours, dict):
        return isinstance(stored, dict) and all(_same(value, stored.get(key)) for key, value in ours.items())
    return bool(ours == stored)


def test_what_the_operator_writes_back_is_what_was_applied() -> None:
    """The operator's finalizer update sends the spec through its Go structs. What it would alter or drop of ours, the
    next apply would put in again: a spec that never comes to rest."""
    text = TEXT.replace(
        '    requests: {cpu: "40", nvidia.com/gpu: "2"}\n    limits: {cpu: "40", nvidia.com/gpu: "2"}',
        '    requests: {cpu: 0.5, memory: 1024Mi, nvidia.com/gpu: "2"}\n'
        '    limits: {cpu: 2000m, memory: "8589934592", nvidia.com/gpu: "2"}',
    )
    text = text.replace("  port: 8000\n", "  port: 8000\n  start: {first_look_s: 0}\n  env: {EMPTY: '', B: x}\n")
    text = text.replace(
        "  access_mode: ReadWriteMany\n", "  access_mode: ReadWriteMany\n  resources: {cpu: 1.5, memory: 2048Mi}\n"
    )
    text = text.replace(
        "{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}",
        "{key: nvidia.com/gpu, operator: Exists, value: '', effect: NoSchedule}",
    )
    for deployment in (load(), load(text)):
        cache, service = cache_spec(deployment), service_spec(deployment, "cache")
        assert _same(cache, goform.nimcache_spec(cache))
        assert _same(service, goform.nimservice_spec(service))
    assert service["resources"]["requests"] == {"cpu": "500m", "memory": "1Gi", "nvidia.com/gpu": "2"}


def test_equal_quantities_are_one_name() -> None:
    other = TEXT.replace('cpu: "40"', "cpu: 40000m")
    assert names_for(load(other), "r") == names_for(load(), "r")


@pytest.mark.parametrize(
    "text",
    ["40", "0.5", "1000m", "1500m", "1024Mi", "1.5Gi", "100Ki", "1Ki", "1000", "0", "1e3", "2E", "12Ei", "123456",
     "0.1n", "1025Ki", "512Mi", "1e-3", "100M", ".5Gi"],
)  # fmt: skip
def test_quantities_are_written_as_go_writes_them(text: str) -> None:
    assert canonical_quantity(text) == canonical(text)
    assert parse_quantity(canonical_quantity(text)) >= parse_quantity(text)
