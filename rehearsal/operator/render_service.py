"""The objects of a NIMService."""

from __future__ import annotations

import copy

from rehearsal.operator import render_env
from rehearsal.operator.api import (
    DEFAULT_GROUP,
    DEFAULT_USER,
    MANAGED_BY,
    OPERATOR,
    REQUIRED_SCC,
    Obj,
    Panic,
    operator_version,
    owner_reference,
)
from rehearsal.operator.render_cache import extra_container, scc_rule

_RBAC = "rbac.authorization.k8s.io"
_PROBE_PATHS = {
    "livenessProbe": "/v1/health/live",
    "readinessProbe": "/v1/health/ready",
    "startupProbe": "/v1/health/ready",
}


def _standard_labels(name: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": name,
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/operator-version": operator_version(),
        "app.kubernetes.io/part-of": "nim-service",
        MANAGED_BY: OPERATOR,
    }


def _labels(service: Obj) -> dict[str, str]:
    return {**(service["spec"].get("labels") or {}), **_standard_labels(service["metadata"]["name"])}


def _annotations(service: Obj) -> dict[str, str]:
    return {**(service["spec"].get("annotations") or {}), REQUIRED_SCC: "nonroot"}


def _meta(service: Obj, **more: dict[str, str]) -> Obj:
    """Metadata of a child; `more`: labels and annotations of its own, which the standard ones override."""
    return {
        "name": service["metadata"]["name"],
        "namespace": service["metadata"]["namespace"],
        "labels": {**more.get("labels", {}), **_labels(service)},
        "annotations": {**more.get("annotations", {}), **_annotations(service)},
        "ownerReferences": [owner_reference(service)],
    }


def port(service: Obj) -> int:
    """The API's port. Panics when the spec has none, as happens before the finalizer's update has brought the
    default."""
    value = service["spec"].get("expose", {}).get("service", {}).get("port")
    if value is None:
        raise Panic("runtime error: invalid memory address or nil pointer dereference (spec.expose.service.port)")
    return int(value)


def account(service: Obj) -> list[Obj]:
    meta = service["metadata"]
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _meta(service)},
        {"apiVersion": f"{_RBAC}/v1", "kind": "Role", "metadata": _meta(service), "rules": [scc_rule()]},
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": _meta(service),
            "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": meta["name"]},
            "subjects": [{"kind": "ServiceAccount", "name": meta["name"], "namespace": meta["namespace"]}],
        },
    ]


def ports(service: Obj) -> list[tuple[str, int]]:
    expose = service["spec"].get("expose", {}).get("service", {})
    result = [("api", port(service))]
    for name, field in (("grpc", "grpcPort"), ("metrics", "metricsPort")):
        if expose.get(field):
            result.append((name, int(expose[field])))
    return result


def service_object(service: Obj) -> Obj:
    expose = service["spec"].get("expose", {}).get("service", {})
    spec = {
        "type": expose.get("type") or "ClusterIP",
        "selector": {"app": service["metadata"]["name"]},
        "ports": [
            {"name": name, "port": number, "targetPort": name, "protocol": "TCP"} for name, number in ports(service)
        ],
    }
    own = {key: expose.get(key) or {} for key in ("labels", "annotations")}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _meta(service, **own), "spec": spec}


def ingress(service: Obj) -> Obj | None:
    """The deprecated `expose.ingress`, or the one of `expose.router`."""
    expose, name = service["spec"].get("expose", {}), service["metadata"]["name"]
    old, router = expose.get("ingress", {}), expose.get("router", {})
    base = {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress"}
    if old.get("enabled"):
        return {
            **base,
            "metadata": _meta(service, annotations=old.get("annotations") or {}),
            "spec": copy.deepcopy(old.get("spec", {})),
        }
    if not router.get("ingress"):
        return None
    backend = {"service": {"name": name, "port": {"name": "api"}}}
    host = f"{name}.{service['metadata']['namespace']}.{router.get('hostDomainName', '')}"
    rule = {"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
    spec: Obj = {"ingressClassName": router["ingress"].get("ingressClass"), "rules": [rule]}
    if router["ingress"].get("tlsSecretName"):
        spec["tls"] = [{"hosts": [host], "secretName": router["ingress"]["tlsSecretName"]}]
    return {**base, "metadata": _meta(service, annotations=router.get("annotations") or {}), "spec": spec}


def routes(service: Obj) -> list[Obj]:
    """Gateway API routes. Where its CRDs are missing, creating one fails and so does the service."""
    router, meta = service["spec"].get("expose", {}).get("router", {}), service["metadata"]
    gateway = router.get("gateway")
    if not gateway:
        return []
    parent = {"name": gateway.get("name"), "namespace": gateway.get("namespace")}
    result = []
    numbers = dict(ports(service))
    for kind, enabled, port_name in (
        ("HTTPRoute", gateway.get("httpRoutesEnabled", True), "api"),
        ("GRPCRoute", gateway.get("grpcRoutesEnabled", False), "grpc"),
    ):
        if enabled and port_name in numbers:
            spec = {
                "parentRefs": [parent],
                "hostnames": [f"{meta['name']}.{meta['namespace']}.{router.get('hostDomainName', '')}"],
                "rules": [
                    {"backendRefs": [gateway.get("backendRef") or {"name": meta["name"], "port": numbers[port_name]}]}
                ],
            }
            annotations = router.get("annotations") or {}
            result.append(
                {
                    "apiVersion": "gateway.networking.k8s.io/v1",
                    "kind": kind,
                    "metadata": _meta(service, annotations=annotations),
                    "spec": spec,
                }
            )
    return result


def autoscaler(service: Obj) -> Obj | None:
    scale = service["spec"].get("scale", {})
    if not scale.get("enabled"):
        return None
    hpa, name = scale.get("hpa", {}), service["metadata"]["name"]
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
        "minReplicas": hpa.get("minReplicas", 1),
        "maxReplicas": hpa.get("maxReplicas", 0),
    }
    for field in ("metrics", "behavior"):
        if hpa.get(field):
            spec[field] = copy.deepcopy(hpa[field])
    meta = _meta(service, annotations=scale.get("annotations") or {})
    return {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": meta, "spec": spec}


def service_monitor(service: Obj) -> Obj | None:
    metrics = service["spec"].get("metrics", {})
    if not metrics.get("enabled"):
        return None
    monitor = metrics.get("serviceMonitor", {})
    endpoint = {"port": "metrics" if "metrics" in dict(ports(service)) else "api", "path": "/v1/metrics"}
    for field, name in (("interval", "interval"), ("scrapeTimeout", "scrapeTimeout")):
        if monitor.get(field):
            endpoint[name] = monitor[field]
    meta = _meta(service, labels=monitor.get("additionalLabels") or {}, annotations=monitor.get("annotations") or {})
    spec = {"selector": {"matchLabels": _standard_labels(service["metadata"]["name"])}, "endpoints": [endpoint]}
    return {"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "metadata": meta, "spec": spec}


def deployment(service: Obj, model_store: Obj, profile: str | None, resources: Obj, replicas: int | None) -> Obj:
    """The Deployment. `model_store`: the volume; `profile`: sets NIM_MODEL_PROFILE; `replicas` None: left to the
    autoscaler."""
    name = service["metadata"]["name"]
    template = {
        "metadata": {"labels": {**_labels(service), "app": name}, "annotations": _annotations(service)},
        "spec": _pod_spec(service, model_store, profile, resources),
    }
    spec: Obj = {
        "selector": {"matchLabels": {"app": name}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": 0}},
        "template": template,
    }
    if replicas is not None:
        spec["replicas"] = replicas
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": _meta(service), "spec": spec}


def _pod_spec(service: Obj, model_store: Obj, profile: str | None, resources: Obj) -> Obj:
    spec, name = service["spec"], service["metadata"]["name"]
    shared: Obj = {"medium": "Memory"}
    if spec["storage"].get("sharedMemorySizeLimit"):
        shared["sizeLimit"] = spec["storage"]["sharedMemorySizeLimit"]
    container = _container(service, profile, resources)
    user, group = spec.get("userID", DEFAULT_USER), spec.get("groupID", DEFAULT_GROUP)
    extra = {
        field: [extra_container(c, container["env"], container["volumeMounts"]) for c in spec.get(source) or []]
        for field, source in (("sidecars", "sidecarContainers"), ("initContainers", "initContainers"))
    }
    pod: Obj = {
        "volumes": [{"name": "dshm", "emptyDir": shared}, {"name": "model-store", **model_store}],
        "containers": [container, *extra["sidecars"]],
        "serviceAccountName": name,
        "securityContext": {"runAsUser": user, "runAsGroup": group, "fsGroup": group},
        "imagePullSecrets": [{"name": secret} for secret in spec["image"].get("pullSecrets") or []],
    }
    if extra["initContainers"]:
        pod["initContainers"] = extra["initContainers"]
    for field in ("nodeSelector", "tolerations", "affinity", "schedulerName", "priorityClassName", "runtimeClassName"):
        if spec.get(field):
            pod[field] = copy.deepcopy(spec[field])
    return pod


def _environment(service: Obj, profile: str | None) -> list[Obj]:
    spec, number, exposed = service["spec"], str(port(service)), dict(ports(service))
    env: list[Obj] = [
        {"name": "NIM_CACHE_PATH", "value": "/model-store"},
        {"name": "OUTLINES_CACHE_DIR", "value": "/tmp/outlines"},
        {"name": "NIM_SERVER_PORT", "value": number},
        {"name": "NIM_HTTP_API_PORT", "value": number},
        {"name": "NIM_JSONL_LOGGING", "value": "1"},
        {"name": "NIM_LOG_LEVEL", "value": "INFO"},
    ]
    if spec.get("authSecret"):
        env.append(render_env.from_secret("NGC_API_KEY", spec["authSecret"], "NGC_API_KEY"))
    if profile:
        env.append({"name": "NIM_MODEL_PROFILE", "value": profile})
    for name, variable in (("grpc", "NIM_GRPC_API_PORT"), ("metrics", "NIM_TRITON_METRICS_PORT")):
        if name in exposed:
            env.append({"name": variable, "value": str(exposed[name])})
    return render_env.merge(spec.get("env") or [], env + render_env.proxy(spec.get("proxy")))


def _mounts(storage: Obj) -> list[Obj]:
    mount: Obj = {"name": "model-store", "mountPath": "/model-store"}
    if storage.get("pvc", {}).get("subPath"):
        mount["subPath"] = storage["pvc"]["subPath"]
    if storage.get("readOnly"):
        mount["readOnly"] = True
    return [mount, {"name": "dshm", "mountPath": "/dev/shm"}]


def _container(service: Obj, profile: str | None, resources: Obj) -> Obj:
    spec = service["spec"]
    container: Obj = {
        "name": f"{service['metadata']['name']}-ctr",
        "image": f"{spec['image']['repository']}:{spec['image']['tag']}",
        "env": _environment(service, profile),
        "ports": [{"name": name, "containerPort": value, "protocol": "TCP"} for name, value in ports(service)],
        "volumeMounts": _mounts(spec["storage"]),
    }
    probes = {field: _probe(field, spec.get(field, {})) for field in _PROBE_PATHS}
    optional = {
        "imagePullPolicy": spec["image"].get("pullPolicy"),
        "resources": resources,
        "command": spec.get("command"),
        "args": spec.get("args"),
    }
    return container | {key: value for key, value in (optional | probes).items() if value}


def _probe(field: str, settings: Obj) -> Obj | None:
    """The default start-up budget: 30 s and then 120 attempts 10 s apart."""
    if settings.get("enabled") is False:
        return None
    given: Obj = settings.get("probe") or {}
    if given:
        return copy.deepcopy(given)
    startup = field == "startupProbe"
    return {
        "httpGet": {"path": _PROBE_PATHS[field], "port": "api"},
        "initialDelaySeconds": 30 if startup else 15,
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 120 if startup else 3,
    }
