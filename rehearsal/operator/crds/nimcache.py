"""NIMCache v1alpha1."""

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
    obj,
    proxy,
    quantity,
    rule,
    string,
    strings,
    texts,
)

_FIXED_PULLER = (
    "modelPuller is an immutable field. Please create a new NIMCache resource instead when you want to change this "
    "container."
)


def _ngc() -> Schema:
    gpu = obj({"product": string(), "ids": strings()})
    model = obj(
        {
            "profiles": strings(), "precision": string(), "engine": string(), "tensorParallelism": string(),
            "qosProfile": string(), "gpus": array(gpu), "lora": boolean(), "buildable": boolean(),
        }
    )  # fmt: skip
    return obj(
        {
            "authSecret!": string(),
            "modelPuller!": string(**{"x-kubernetes-validations": [rule("self == oldSelf", _FIXED_PULLER)]}),
            "pullSecret": string(),
            "model": model,
            "modelEndpoint": string(),
        },
        rule(
            "!(has(self.model) && has(self.modelEndpoint))", "Only one of 'model' or 'modelEndpoint' can be specified"
        ),
    )


def _hub(endpoint: str, namespace: Schema, namespace_key: str) -> Schema:
    """Hugging Face, or a NeMo DataStore that speaks its protocol."""
    needed = {name: string(minLength=1) for name in ("authSecret!", "modelPuller!", "pullSecret!")}
    return obj(
        {
            "endpoint!": string(pattern=endpoint),
            namespace_key: namespace,
            **needed,
            "modelName": string(),
            "datasetName": string(),
            "revision": string(minLength=1),
        },
        rule(
            "(has(self.modelName) ? 1 : 0) + (has(self.datasetName) ? 1 : 0) == 1",
            "Exactly one of modelName or datasetName must be defined",
        ),
    )


def _spec() -> Schema:
    source = obj(
        {
            "ngc": _ngc(),
            "dataStore": _hub(r"^https?://.*/v1/hf/?$", string(minLength=1, default="default"), "namespace"),
            "hf": _hub(r"^https?://.*$", string(minLength=1), "namespace!"),
        },
        rule(
            "(has(self.ngc) ? 1 : 0) + (has(self.dataStore) ? 1 : 0) + (has(self.hf) ? 1 : 0) == 1",
            "Exactly one of ngc, dataStore, or hf must be defined",
        ),
    )
    return obj(
        {
            "source!": source,
            "storage!": obj({"pvc": claim(), "hostPath": string()}),
            "resources": obj({"cpu": quantity(), "memory": quantity()}),
            "nodeSelector": texts(),
            "tolerations": array(core("core.v1.Toleration")),
            "runtimeClassName": string(),
            "env": env(),
            "initContainers": extra_containers(),
            "proxy": proxy(),
            "certConfig": obj({"name!": string(), "mountPath!": string()}),
            "userID": big_integer(),
            "groupID": big_integer(),
        }
    )


def _status() -> Schema:
    profile = obj({"name": string(), "model": string(), "release": string(), "config": texts()})
    return obj(
        {
            "state": enum("", "PVC-Created", "Started", "Pending", "InProgress", "Ready", "NotReady", "Failed"),
            "type": string(),
            "pvc": string(),
            "profiles": array(profile),
            "conditions": conditions(),
        }
    )


def definition() -> Schema:
    columns = [("Status", "string", ".status.state"), ("PVC", "string", ".status.pvc")]
    return crd("NIMCache", "nimcaches", [], _spec(), _status(), columns)
