"""Kubernetes objects: the plain YAML of include/manifests with a deployment's values put in as data.

Never string templates: a value cannot change the structure around it, and each file can be read and checked as it is.
Objects of one deployment carry its label, the rollout and the claim's generation, so that a task of an older
generation can be refused. Objects that several deployments share (namespace, secrets, storage class) carry only the
environment: with a generation they would refuse the neighbour's next run.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from nim_rollouts.core.errors import ManifestError
from nim_rollouts.core.names import Names
from nim_rollouts.core.nimspec import cache_spec, service_spec
from nim_rollouts.core.spec import Deployment, Environment

Object = dict[str, Any]
Templates = Mapping[str, str]
"""File in include/manifests, by its path there -> its text."""

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "nim-rollouts"
DEPLOYMENT_LABEL = "nim-rollouts/deployment"
ENVIRONMENT_LABEL = "nim-rollouts/environment"
GENERATION = "nim-rollouts/generation"
ROLLOUT = "nim-rollouts/rollout"

NODE_POOLS = "node-pools"
"""Folder of include/manifests with one file a node pool."""

BENCHMARK_DIR = "/opt/benchmark"
# What a benchmark pod may need before its load starts: a node and its image.
START_ALLOWANCE_S = 900
# The API server refuses objects above 1 MiB (etcd's limit is 1.5 MiB with everything around).
_CONFIG_MAP_LIMIT = 1_000_000


@dataclass(frozen=True)
class Context:
    """Who applies: what every object of a run is marked with. `generation` is that of the deployment's claim."""

    templates: Templates
    names: Names
    deployment: str
    environment: str
    rollout: str
    generation: int


def namespace(context: Context) -> Object:
    """The deployment's namespace (shared)."""
    return _shared(_load(context, "namespace.yaml", "Namespace"), context.environment, context.names.namespace)


def secrets(context: Context, key: str) -> list[Object]:
    """The pull secret and the API secret (shared by the namespace), holding the NGC key.

    Keep the result out of logs, XCom and records.
    """
    names = context.names
    auth = base64.b64encode(f"$oauthtoken:{key}".encode()).decode()
    registry = {"auths": {"nvcr.io": {"username": "$oauthtoken", "password": key, "auth": auth}}}
    values = (
        ("ngc-secret.yaml", names.pull_secret, {".dockerconfigjson": json.dumps(registry)}),
        ("ngc-api-secret.yaml", names.api_secret, {"NGC_API_KEY": key}),
    )
    result = []
    for file, name, data in values:
        secret = _shared(_load(context, file, "Secret"), context.environment, name, names.namespace)
        # `data`, not `stringData`: the latter is write-only, so server-side apply could not take a key away again.
        secret.pop("stringData", None)
        secret["data"] = {field: base64.b64encode(text.encode()).decode() for field, text in data.items()}
        result.append(secret)
    return result


def storage_class(templates: Templates, environment: Environment, file_system_id: str) -> Object:
    """The environment's storage class on one EFS file system (shared)."""
    obj = _shared(_one(templates, "storage-class.yaml", "StorageClass"), environment.name, environment.storage_class)
    obj["parameters"] = {**obj["parameters"], "fileSystemId": file_system_id}
    return obj


def node_pools(templates: Templates, environment: Environment, outputs: Mapping[str, Any]) -> list[Object]:
    """The environment's Karpenter node pools, each after its node class (shared).

    :param outputs: terraform's: `node_role_name` and `discovery_tag`
    :raises ManifestError: a file does not hold the two, or its pool names another class
    """
    objects = []
    for pool_name in environment.node_pools:
        file = f"{NODE_POOLS}/{pool_name}.yaml"
        node_class, pool = _load_all(templates, file, ("EC2NodeClass", "NodePool"))
        named = pool["spec"]["template"]["spec"]["nodeClassRef"]["name"]
        if named != node_class["metadata"]["name"]:
            raise ManifestError(f"include/manifests/{file}: the NodePool names the node class {named}, not its own")
        for obj in (node_class, pool):
            objects.append(_shared(obj, environment.name, obj["metadata"]["name"]))
        spec, by_tag = node_class["spec"], [{"tags": dict(outputs["discovery_tag"])}]
        spec["role"] = outputs["node_role_name"]
        spec["subnetSelectorTerms"] = spec["securityGroupSelectorTerms"] = by_tag
        # On all that Karpenter makes, so that an inventory finds what a broken teardown has left.
        spec["tags"] = {**spec.get("tags", {}), ENVIRONMENT_LABEL: environment.name}
    return objects


def nim_cache(context: Context, deployment: Deployment) -> Object:
    """The NIMCache."""
    obj = _own(_load(context, "nimcache.yaml", "NIMCache"), context, context.names.cache)
    obj["spec"] = _filled("nimcache.yaml", obj["spec"], cache_spec(deployment))
    return obj


def nim_service(context: Context, deployment: Deployment) -> Object:
    """The NIMService."""
    obj = _own(_load(context, "nimservice.yaml", "NIMService"), context, context.names.service)
    obj["spec"] = _filled("nimservice.yaml", obj["spec"], service_spec(deployment, context.names.cache))
    return obj


def stable_service(context: Context, deployment: Deployment) -> Object:
    """The Service that clients use, leading to this rollout's NIMService."""
    obj = _own(_load(context, "stable-service.yaml", "Service"), context, context.names.stable_service)
    port = deployment.service.port
    # The operator names its pods' label `app` after the NIMService.
    obj["spec"]["selector"] = {"app": context.names.service}
    obj["spec"]["ports"] = [{**obj["spec"]["ports"][0], "port": port, "targetPort": port}]
    return obj


def benchmark(context: Context, deployment: Deployment, files: Mapping[str, bytes]) -> list[Object]:
    """The ConfigMap with the program and the tokenizer, and the Job.

    :param files: name -> content; all lie in one folder in the pod, so a path's last part must be unique
    :raises ManifestError: the files do not fit into a ConfigMap
    """
    names, load = context.names, deployment.benchmark
    config_map, job = _load_all(context.templates, "benchmark.yaml", ("ConfigMap", "Job"))
    config_map = _own(config_map, context, names.benchmark_config)
    config_map.update(_config_data(files))

    job = _own(job, context, names.benchmark_job)
    # The pod's labels too, so that a sweep by label finds a pod whose Job is gone.
    pod = job["spec"]["template"]
    pod["metadata"] = {"labels": dict(job["metadata"]["labels"])}
    job["spec"]["activeDeadlineSeconds"] = load.deadline_s + START_ALLOWANCE_S
    spec = pod["spec"]
    spec["imagePullSecrets"] = [{"name": names.pull_secret}]
    if load.node_selector:
        spec["nodeSelector"] = dict(load.node_selector)
    if load.tolerations:
        spec["tolerations"] = [one.manifest() for one in load.tolerations]
    for volume in spec["volumes"]:
        if "configMap" in volume:
            volume["configMap"]["name"] = names.benchmark_config
    container = spec["containers"][0]
    container["image"] = load.image
    container["resources"] = {field: dict(value) for field, value in load.resources.model_dump().items() if value}
    values = {
        "BENCH_URL": f"http://{names.stable_service}.{names.namespace}:{deployment.service.port}",
        "BENCH_MODEL": deployment.model,
        "BENCH_REQUESTS": str(load.requests),
        "BENCH_CONCURRENCY": str(load.concurrency),
        "BENCH_INPUT_TOKENS": str(load.input_tokens),
        "BENCH_OUTPUT_TOKENS": str(load.output_tokens),
        "BENCH_WARMUP": str(load.warmup_requests),
        "BENCH_STREAMING": "true" if load.streaming else "false",
        "BENCH_DEADLINE_S": str(load.deadline_s),
    }
    container["env"] = [
        {"name": one["name"], "value": values.pop(one["name"], one["value"])} for one in container["env"]
    ]
    if values:
        raise ManifestError(f"benchmark.yaml lacks the environment variables {', '.join(sorted(values))}")
    return [config_map, job]


def storage_probe(context: Context, deployment: Deployment, image: str) -> Object:
    """The Job that writes into a volume of the cache's storage class, as the cache's pods would, and reads it back.

    Its claim is the pod's own (ephemeral), so that nothing is left once the Job is deleted, or cleaned up by its time
    to live where nobody comes back to delete it.
    """
    names, cache = context.names, deployment.cache
    job = _own(_load(context, "storage-probe.yaml", "Job"), context, names.storage_probe)
    pod = job["spec"]["template"]
    pod["metadata"] = {"labels": dict(job["metadata"]["labels"])}
    container = pod["spec"]["containers"][0]
    container["image"] = image
    container["env"] = [{"name": "PROBE_TOKEN", "value": context.rollout}]
    claim = pod["spec"]["volumes"][0]["ephemeral"]["volumeClaimTemplate"]
    claim["metadata"] = {"labels": dict(job["metadata"]["labels"])}
    claim["spec"] |= {"accessModes": [cache.access_mode], "storageClassName": cache.storage_class}
    return job


def _config_data(files: Mapping[str, bytes]) -> dict[str, dict[str, str]]:
    text: dict[str, str] = {}
    binary: dict[str, str] = {}
    for path, content in sorted(files.items()):
        name = path.rsplit("/", 1)[-1]
        if name in text or name in binary:
            raise ManifestError(f"two files of the benchmark are named {name}", hint="Rename one of them")
        try:
            text[name] = content.decode()
        except UnicodeDecodeError:
            binary[name] = base64.b64encode(content).decode()
    size = sum(len(value.encode()) for value in (*text.values(), *binary.values()))
    if size > _CONFIG_MAP_LIMIT:
        raise ManifestError(
            f"the benchmark's files have {size} bytes together, a ConfigMap holds {_CONFIG_MAP_LIMIT}",
            hint="Use a smaller tokenizer",
        )
    return {"data": text, **({"binaryData": binary} if binary else {})}


def _shared(obj: Object, environment: str, name: str, namespace: str | None = None) -> Object:
    labels = {MANAGED_BY: MANAGER, ENVIRONMENT_LABEL: environment}
    obj["metadata"] = {
        "name": name,
        **({"namespace": namespace} if namespace else {}),
        "labels": {**obj["metadata"].get("labels", {}), **labels},
    }
    return obj


def _own(obj: Object, context: Context, name: str) -> Object:
    metadata = obj["metadata"]
    obj["metadata"] = {
        "name": name,
        "namespace": context.names.namespace,
        "labels": {
            **metadata.get("labels", {}),
            MANAGED_BY: MANAGER,
            DEPLOYMENT_LABEL: context.deployment,
            ENVIRONMENT_LABEL: context.environment,
        },
        "annotations": {
            **metadata.get("annotations", {}),
            GENERATION: str(context.generation),
            ROLLOUT: context.rollout,
        },
    }
    return obj


def _filled(file: str, template: Object, spec: Object) -> Object:
    """The deployment's spec. What only the file has would be lost, and the name's hash would not cover it."""
    unknown = set(template) - set(spec)
    if unknown:
        raise ManifestError(
            f"{file}: spec.{', spec.'.join(sorted(unknown))} would not be applied: the spec comes from the deployment",
            hint="Remove it from the file, or give it in the deployment",
        )
    return spec


def _load(context: Context, file: str, kind: str) -> Object:
    return _one(context.templates, file, kind)


def _one(templates: Templates, file: str, kind: str) -> Object:
    return _load_all(templates, file, (kind,))[0]


def _load_all(templates: Templates, file: str, kinds: tuple[str, ...]) -> list[Object]:
    if file not in templates:
        raise ManifestError(f"include/manifests/{file} is missing")
    try:
        documents = [document for document in yaml.safe_load_all(templates[file]) if document is not None]
    except yaml.YAMLError as error:
        raise ManifestError(f"include/manifests/{file} is not YAML: {error}") from None
    found = tuple(document.get("kind") if isinstance(document, dict) else None for document in documents)
    if found != kinds:
        raise ManifestError(f"include/manifests/{file} must hold {', '.join(kinds)}, found {found}")
    return documents
