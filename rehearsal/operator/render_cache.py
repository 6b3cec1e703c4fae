"""The objects of a NIMCache: claim, selection pod, manifest ConfigMap, download Job, and the namespace's shared
account."""

from __future__ import annotations

from typing import Any

from rehearsal.operator import render_env
from rehearsal.operator.api import (
    DEFAULT_GROUP,
    DEFAULT_USER,
    MANAGED_BY,
    OPERATOR,
    Obj,
    ReconcileError,
    owner_reference,
)
from rehearsal.operator.selection import ALL

ACCOUNT, ROLE, BINDING = "nim-cache-sa", "nim-cache-role", "nim-cache-rolebinding"
CONTAINER = "nim-cache-ctr"
MANIFEST_KEY = "model_manifest.yaml"
NO_MANIFEST = "model_manifest.yaml not found"
GPU_NODES = {"feature.node.kubernetes.io/pci-10de.present": "true"}
"""Where a cache's pods go when the spec has no nodeSelector: nodes that node feature discovery saw an NVIDIA card
on."""

_PRINT_MANIFEST = "; ".join(
    (
        "if [ -f /opt/nim/etc/default/model_manifest.yaml ]",
        "then cat /opt/nim/etc/default/model_manifest.yaml",
        "elif [ -f /etc/nim/config/model_manifest.yaml ]",
        "then cat /etc/nim/config/model_manifest.yaml",
        f'else echo "{NO_MANIFEST}"',
        "fi",
        "sleep infinity",
    )
)


def _meta(cache: Obj, name: str, labels: dict[str, str] | None = None) -> Obj:
    return {
        "name": name,
        "namespace": cache["metadata"]["namespace"],
        "labels": labels if labels is not None else _labels(cache),
        "ownerReferences": [owner_reference(cache)],
    }


def _labels(cache: Obj) -> dict[str, str]:
    return {"app": OPERATOR, "app.kubernetes.io/name": cache["metadata"]["name"], MANAGED_BY: OPERATOR}


def account(namespace: str) -> list[Obj]:
    """ServiceAccount, Role and RoleBinding that all caches of a namespace share; owned by nobody, never deleted."""
    meta = {"namespace": namespace, "labels": {"app": OPERATOR, MANAGED_BY: OPERATOR}}
    rbac = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta | {"name": ACCOUNT}},
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": meta | {"name": ROLE}, "rules": [scc_rule()]},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": meta | {"name": BINDING},
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": ROLE},
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}],
        },
    ]


def scc_rule() -> Obj:
    """The one permission that NIM pods need, on OpenShift alone."""
    return {
        "apiGroups": ["security.openshift.io"],
        "resources": ["securitycontextconstraints"],
        "resourceNames": ["nonroot"],
        "verbs": ["use"],
    }


def claim_name(cache: Obj) -> str:
    return cache["spec"]["storage"].get("pvc", {}).get("name") or f"{cache['metadata']['name']}-pvc"


def claim(cache: Obj) -> Obj:
    """The volume claim. Raises ReconcileError when the spec lacks what a new one needs."""
    return claim_of(cache, cache["spec"]["storage"].get("pvc", {}), claim_name(cache), "nim-cache")


def claim_of(owner: Obj, pvc: Obj, name: str, part_of: str) -> Obj:
    if not pvc.get("size"):
        raise ReconcileError(
            f"failed to parse size for pvc creation {name}, err quantities must match the regular expression"
        )
    labels = {
        "app": OPERATOR,
        "app.kubernetes.io/name": owner["metadata"]["name"],
        "app.kubernetes.io/instance": owner["metadata"]["name"],
        "app.kubernetes.io/part-of": part_of,
        MANAGED_BY: OPERATOR,
    }
    meta = _meta(owner, name, labels)
    if pvc.get("annotations"):
        meta["annotations"] = dict(pvc["annotations"])
    spec: Obj = {
        "accessModes": [pvc["volumeAccessMode"]] if pvc.get("volumeAccessMode") else [],
        "resources": {"requests": {"storage": pvc["size"]}},
    }
    if pvc.get("storageClass"):
        spec["storageClassName"] = pvc["storageClass"]
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}


def source(cache: Obj) -> tuple[str, Obj]:
    """The kind of the model's source (ngc, dataStore or hf), and its settings."""
    for kind in ("ngc", "dataStore", "hf"):
        if kind in cache["spec"]["source"]:
            return kind, cache["spec"]["source"][kind]
    raise ReconcileError("no model source is given")


def _pod_spec(cache: Obj, container: Obj) -> Obj:
    spec, (_, origin) = cache["spec"], source(cache)
    amounts = {name: spec.get("resources", {}).get(name, "0") for name in ("cpu", "memory")}
    user, group = spec.get("userID", DEFAULT_USER), spec.get("groupID", DEFAULT_GROUP)
    container |= {
        "name": CONTAINER,
        "image": origin["modelPuller"],
        "imagePullPolicy": "IfNotPresent",
        "resources": {"limits": dict(amounts), "requests": dict(amounts)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": group,
        },
    }
    pod: Obj = {
        "containers": [container],
        "serviceAccountName": ACCOUNT,
        "securityContext": {"runAsUser": user, "runAsNonRoot": True, "fsGroup": group},
        "nodeSelector": spec.get("nodeSelector") or dict(GPU_NODES),
        "tolerations": spec.get("tolerations") or [],
    }
    if origin.get("pullSecret"):
        pod["imagePullSecrets"] = [{"name": origin["pullSecret"]}]
    if spec.get("runtimeClassName"):
        pod["runtimeClassName"] = spec["runtimeClassName"]
    return pod


def selection_pod_name(cache: Obj) -> str:
    return f"{cache['metadata']['name']}-pod"


def selection_pod(cache: Obj) -> Obj:
    """A pod that prints the image's model manifest and then sleeps for ever."""
    pod = _pod_spec(cache, {"command": ["sh", "-c", _PRINT_MANIFEST]})
    pod["restartPolicy"] = "Always"
    return {"apiVersion": "v1", "kind": "Pod", "metadata": _meta(cache, selection_pod_name(cache)), "spec": pod}


def config_map_name(cache: Obj) -> str:
    return f"{cache['metadata']['name']}-manifest"


def config_map(cache: Obj, text: str) -> Obj:
    meta = _meta(cache, config_map_name(cache))
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {MANIFEST_KEY: text}}


def job_name(cache: Obj) -> str:
    return f"{cache['metadata']['name']}-job"


def job(cache: Obj, profiles: list[str], *, has_manifest: bool) -> Obj:
    """The download Job. `profiles`: ids to load, or the single word `all`."""
    spec, (kind, origin) = cache["spec"], source(cache)
    env = [{"name": "NIM_CACHE_PATH", "value": "/model-store"}]
    mount = {"name": "nim-cache-volume", "mountPath": "/model-store"}
    sub_path = spec["storage"].get("pvc", {}).get("subPath")
    if sub_path:
        mount["subPath"] = sub_path
    container: Obj = {
        "envFrom": [{"secretRef": {"name": origin["authSecret"]}}],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [mount, {"name": "scratch", "mountPath": "/scratch"}],
    }
    command, args, more = _download(kind, origin, profiles, has_manifest)
    container |= {"command": command, "args": args}
    container["env"] = render_env.merge(spec.get("env") or [], env + more + render_env.proxy(spec.get("proxy")))
    pod = _pod_spec(cache, container)
    pod["restartPolicy"] = "Never"
    pod["volumes"] = [
        {"name": "nim-cache-volume", "persistentVolumeClaim": {"claimName": claim_name(cache)}},
        {"name": "scratch", "emptyDir": {}},
    ]
    pod["initContainers"] = [
        extra_container(c, container["env"], container["volumeMounts"]) for c in spec.get("initContainers") or []
    ]
    if not pod["initContainers"]:
        del pod["initContainers"]
    template = {
        "metadata": {"labels": _labels(cache), "annotations": {"sidecar.istio.io/inject": "false"}},
        "spec": pod,
    }
    meta = _meta(cache, job_name(cache))
    # The Job's labels come from API defaulting out of its pod template, as for the real operator.
    del meta["labels"]
    spec_: Obj = {
        "backoffLimit": 5,
        "ttlSecondsAfterFinished": 600,
        "completions": 1,
        "parallelism": 1,
        "template": template,
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec_}


def _download(
    kind: str, origin: Obj, profiles: list[str], has_manifest: bool
) -> tuple[list[str], list[str], list[Obj]]:
    """Command, arguments and further environment of the download."""
    if kind == "ngc":
        if origin.get("modelEndpoint"):
            args = ["--model-repo", origin["modelEndpoint"], "--model-store", "/model-store"]
            return ["create-model-store"], args, [{"name": "NIM_MODEL_NAME", "value": origin["modelEndpoint"]}]
        return ["download-to-cache"], ["--all"] if profiles == [ALL] else ["--profiles", *profiles], []
    name = origin.get("modelName") or origin.get("datasetName") or ""
    hub: list[Obj] = [
        {"name": "HF_HOME", "value": "/model-store/huggingface/hub"},
        {"name": "HF_ENDPOINT", "value": origin["endpoint"]},
    ]
    if not has_manifest:
        return ["download-to-cache"], ["--model-uri", f"hf://{origin['namespace']}/{name}"], hub
    args = [
        "download",
        "--local-dir",
        "/model-store",
        "--repo-type",
        "dataset" if origin.get("datasetName") else "model",
    ]
    if origin.get("revision"):
        args += ["--revision", origin["revision"]]
    return ["huggingface-cli"], [*args, f"{origin['namespace']}/{name}"], hub


def extra_container(container: Obj, env: list[Obj], mounts: list[Obj]) -> Obj:
    """A container that the user adds: its image is given in parts, and it sees the main container's volumes."""
    image = container["image"]
    result: dict[str, Any] = {
        "name": container["name"],
        "image": f"{image['repository']}:{image['tag']}",
        "env": render_env.merge(container.get("env") or [], env),
        "volumeMounts": mounts,
    }
    if image.get("pullPolicy"):
        result["imagePullPolicy"] = image["pullPolicy"]
    for field in ("command", "args", "workingDir"):
        if container.get(field):
            result[field] = container[field]
    return result
