"""NIMService v1alpha1."""

from __future__ import annotations

from rehearsal.operator.crds.shorthand import (
    Schema,
    array,
    big_integer,
    boolean,
    claim,
    conditions,
    core,
    crd,
    enum,
    env,
    extra_containers,
    image,
    integer,
    obj,
    proxy,
    quantity,
    rule,
    string,
    strings,
    texts,
)


def _expose() -> Schema:
    port = integer(minimum=1, maximum=65535)
    service = obj(
        {
            "type": string(),
            "name": string(),
            "port": integer(minimum=1, maximum=65535, default=8000),
            "grpcPort": port,
            "metricsPort": port,
            "annotations": texts(),
            "labels": texts(),
        }
    )
    gateway = obj(
        {
            "namespace!": string(minLength=1),
            "name!": string(minLength=1),
            "httpRoutesEnabled": boolean(default=True),
            "grpcRoutesEnabled": boolean(default=False),
            "backendRef": obj(
                {"group": string(), "kind": string(), "name": string(), "namespace": string(), "port": port}
            ),
        }
    )
    router = obj(
        {
            "hostDomainName": string(),
            "annotations": texts(),
            "ingress": obj({"ingressClass!": string(minLength=1), "tlsSecretName": string()}),
            "gateway": gateway,
            "eppConfig": obj({"image": image(), "config": string()}),
        },
        rule("!(has(self.gateway) && has(self.ingress))", "ingress and gateway cannot be specified together"),
    )
    ingress = obj({"enabled": boolean(), "annotations": texts(), "spec": core("networking.v1.IngressSpec")})
    return obj(
        {"service": service, "ingress": ingress, "router": router},
        rule(
            "!(has(self.ingress) && has(self.ingress.enabled) && self.ingress.enabled"
            " && has(self.router) && has(self.router.ingress))",
            "expose.ingress is deprecated and cannot be enabled together with expose.router.ingress",
        ),
    )


def _scale() -> Schema:
    hpa = obj(
        {
            "minReplicas": integer(minimum=1, default=1),
            "maxReplicas!": integer(),
            "metrics": array(core("autoscaling.v2.MetricSpec")),
            "behavior": core("autoscaling.v2.HorizontalPodAutoscalerBehavior"),
        }
    )
    return obj({"enabled": boolean(), "annotations": texts(), "hpa": hpa})


def _probe() -> Schema:
    return obj({"enabled": boolean(), "probe": core("core.v1.Probe")})


def _metrics() -> Schema:
    monitor = {"additionalLabels": texts(), "annotations": texts(), "interval": string(), "scrapeTimeout": string()}
    return obj({"enabled": boolean(), "serviceMonitor": obj(monitor)})


def _multi_node() -> Schema:
    return obj(
        {
            "backendType": enum("lws", default="lws"),
            "parallelism!": obj({"pipeline!": integer(minimum=1), "tensor!": integer(minimum=1)}),
            "mpi": obj({"mpiStartTimeout": integer()}),
            "ray": obj({"env": env()}),
            "computeDomain": obj({"create": boolean(), "name": string()}),
        },
        rule("!(has(self.mpi) && has(self.ray))", "mpi and ray cannot be specified together"),
    )


def _storage() -> Schema:
    return obj(
        {
            "nimCache": obj({"name": string(), "profile": string()}),
            "pvc": claim(),
            "emptyDir": obj({"sizeLimit": quantity()}),
            "hostPath": string(),
            "readOnly": boolean(),
            "sharedMemorySizeLimit": quantity(),
        }
    )


def _dra() -> Schema:
    device = {"name": string(), "count": big_integer(), "deviceClassName": string(), "driverName": string()}
    fields = {
        "resourceClaimName": string(),
        "resourceClaimTemplateName": string(),
        "requests": strings(),
        "claimCreationSpec": obj({"generateName": string(), "devices": array(obj(device))}),
    }
    return array(obj(fields), maxItems=16)


def spec() -> Schema:
    fields: dict[str, Schema] = {
        "image!": image(),
        "authSecret!": string(),
        "storage!": _storage(),
        "replicas": integer(minimum=0),
        "scale": _scale(),
        "expose": _expose(),
        "metrics": _metrics(),
        "resources": core("core.v1.ResourceRequirements"),
        "draResources": _dra(),
        "nodeSelector": texts(),
        "tolerations": array(core("core.v1.Toleration")),
        "affinity": core("core.v1.Affinity"),
        "podAffinity": core("core.v1.PodAffinity"),
        "env": env(),
        "command": strings(),
        "args": strings(),
        "labels": texts(),
        "annotations": texts(),
        "proxy": proxy(),
        "initContainers": extra_containers(),
        "sidecarContainers": extra_containers(),
        "multiNode": _multi_node(),
        "inferencePlatform": enum("standalone", "kserve", default="standalone"),
        "userID": big_integer(),
        "groupID": big_integer(),
    }
    fields |= {name: string() for name in ("schedulerName", "priorityClassName", "runtimeClassName")}
    fields |= {name: _probe() for name in ("livenessProbe", "readinessProbe", "startupProbe")}
    scaled = "has(self.scale) && has(self.scale.enabled) && self.scale.enabled"
    same = (
        "has(self.draResources) ? has(oldSelf.draResources) && self.draResources == oldSelf.draResources"
        " : !has(oldSelf.draResources)"
    )
    return obj(
        fields,
        rule(f"!({scaled} && has(self.replicas))", "spec.replicas cannot be set when spec.scale.enabled is true"),
        rule(f"!({scaled} && has(self.multiNode))", "autoScaling must be nil or disabled when multiNode is set"),
        rule(same, "spec.draResources is immutable"),
    )


def _status() -> Schema:
    model = obj({"name!": string(), "clusterEndpoint!": string(), "externalEndpoint!": string()})
    return obj(
        {
            "state": enum("", "PVC-Created", "Pending", "NotReady", "Ready", "Failed"),
            "availableReplicas": integer(),
            "conditions": conditions(),
            "model": model,
        }
    )


def definition() -> Schema:
    columns = [("Status", "string", ".status.state")]
    return crd("NIMService", "nimservices", [], spec(), _status(), columns)
