"""The parts of a rehearsal: what each runs, what it needs first, and how one sees that it works."""

from __future__ import annotations

import json
import os
import socket
import ssl
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field

from rehearsal import airflow
from rehearsal.aws.environment import environment as aws_environment
from rehearsal.aws.webhook import kubeconfig as webhook_kubeconfig
from rehearsal.config import Rehearsal, write_atomic

Check = Callable[[], bool]


@dataclass(frozen=True)
class Part:
    """One process. With ``once`` it is a step that must end with status 0 before others start."""

    name: str
    argv: list[str]
    needs: tuple[str, ...] = ()
    ready: Check | None = None
    env: dict[str, str] = field(default_factory=dict)
    once: bool = False
    patience: float = 60.0
    """Seconds until a part that is not ready counts as failed."""


def http_ok(url: str, *, ca: str | None = None) -> Check:
    def check() -> bool:
        context = ssl.create_default_context(cafile=ca) if ca else None
        try:
            with urllib.request.urlopen(url, timeout=2, context=context) as answer:
                return answer.status == 200
        except OSError:
            return False

    return check


def port_open(port: int) -> Check:
    def check() -> bool:
        with socket.socket() as probe:
            probe.settimeout(0.5)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return check


def marked_ready(r: Rehearsal, name: str) -> Check:
    return (r.state / "ready" / name).exists


def always() -> bool:
    return True


def _control_plane(r: Rehearsal) -> list[Part]:
    binary, pki, port = str(r.controlplane), r.state / "pki", r.ports
    etcd_url = f"http://127.0.0.1:{port['etcd']}"
    peer_url = f"http://127.0.0.1:{port['etcd_peer']}"
    kubeconfig = f"--kubeconfig={r.kubeconfig}"
    apiserver = [
        binary, "kube-apiserver", f"--etcd-servers={etcd_url}", "--bind-address=127.0.0.1",
        f"--secure-port={port['apiserver']}", "--advertise-address=127.0.0.1",
        # A loopback address is refused as an endpoint of the Service `kubernetes`; pods are told the address by env.
        "--endpoint-reconciler-type=none",
        f"--tls-cert-file={pki / 'server.crt'}", f"--tls-private-key-file={pki / 'server.key'}",
        f"--token-auth-file={pki / 'tokens.csv'}", "--authorization-mode=Node,RBAC",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki / 'sa.pub'}", f"--service-account-signing-key-file={pki / 'sa.key'}",
        f"--service-cluster-ip-range={r.service_cidr}", "--kubelet-preferred-address-types=InternalIP",
        f"--authentication-token-webhook-config-file={r.state / 'webhook.kubeconfig'}",
        "--authentication-token-webhook-version=v1", "--authentication-token-webhook-cache-ttl=10s",
        f"--audit-log-path={r.logs / 'audit.jsonl'}", f"--audit-policy-file={r.state / 'audit-policy.json'}",
    ]  # fmt: skip
    controller_manager = [
        binary, "kube-controller-manager", kubeconfig, "--leader-elect=false", "--secure-port=0",
        f"--service-account-private-key-file={pki / 'sa.key'}", f"--root-ca-file={r.ca}",
        # Bound claims and finished Jobs are looked at again soon, as on a cluster with more traffic.
        "--pvclaimbinder-sync-period=5s",
    ]  # fmt: skip
    kwok = [
        binary, "kwok", kubeconfig, f"--config={r.root / 'rehearsal' / 'kwok.yaml'}", "--manage-all-nodes=true",
        "--node-ip=127.0.0.1", f"--node-port={port['kwok']}", f"--server-address=127.0.0.1:{port['kwok']}",
        f"--tls-cert-file={pki / 'server.crt'}", f"--tls-private-key-file={pki / 'server.key'}",
        "--enable-crds=Logs,PortForward,Exec",
        # As a kubelet's. Without it KWOK keeps no leases, and the node lifecycle controller calls a node lost.
        "--node-lease-duration-seconds=40",
    ]  # fmt: skip
    etcd = [
        binary, "etcd", f"--data-dir={r.state / 'etcd'}", "--unsafe-no-fsync", "--log-level=warn",
        f"--listen-client-urls={etcd_url}", f"--advertise-client-urls={etcd_url}",
        f"--listen-peer-urls={peer_url}", f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=default={peer_url}",
    ]  # fmt: skip
    ready_url = r.url("apiserver") + "/healthz"
    return [
        Part("etcd", etcd, ready=http_ok(etcd_url + "/health")),
        Part("kube-apiserver", apiserver, ("etcd",), http_ok(ready_url, ca=str(r.ca))),
        Part("kube-controller-manager", controller_manager, ("kube-apiserver",), always),
        Part("kube-scheduler", [binary, "kube-scheduler", kubeconfig, "--leader-elect=false", "--secure-port=0"],
             ("kube-apiserver",), always),
        Part("cluster-setup", _module(r, "cluster_setup"), ("kube-apiserver",), once=True),
        # The names in runner/bin make `kubectl exec` enter the pod instead of running beside it.
        Part("kwok", kwok, ("cluster-setup",), port_open(port["kwok"]),
             env={"PATH": f"{r.root / 'rehearsal' / 'runner' / 'bin'}:{os.environ.get('PATH', os.defpath)}"}),
    ]  # fmt: skip


def _module(r: Rehearsal, name: str) -> list[str]:
    return [r.python, "-m", f"rehearsal.{name}"]


def _clouds(r: Rehearsal) -> list[Part]:
    """The stand-ins that need no cluster."""
    return [
        Part("aws", _module(r, "aws"), ready=http_ok(r.url("aws") + "/healthz")),
        Part("aws-bootstrap", _module(r, "aws.bootstrap"), ("aws",), once=True, patience=120),
        Part("ngc", _module(r, "ngc"), ready=http_ok(r.url("ngc") + "/healthz")),
        Part("gateway", _module(r, "gateway"), ready=port_open(r.ports["gateway"])),
    ]


def _kubelets(r: Rehearsal) -> list[Part]:
    """The stand-ins that work in the cluster."""
    return [
        Part("runner", _module(r, "runner"), ("cluster-setup",), marked_ready(r, "runner")),
        Part("nodes", _module(r, "nodes"), ("cluster-setup", "aws"), marked_ready(r, "nodes")),
        Part("storage", _module(r, "storage"), ("cluster-setup", "aws"), marked_ready(r, "storage")),
    ]


def all_parts(r: Rehearsal) -> list[Part]:
    """Every part, in an order in which each one's needs stand before it."""
    parts = _clouds(r) + _control_plane(r) + _kubelets(r)
    if r.with_airflow:
        parts = [
            Part("database", _module(r, "airflow"), once=True, patience=180),
            Part("postgres", airflow.postgres_argv(r), ("database",), port_open(r.ports["postgres"])),
            *parts,
        ]
        parts += [
            Part(name, argv, ("postgres",), ready, env=airflow.environment(r), patience=180)
            for name, argv, ready in (
                ("airflow-api-server", airflow.argv(r, "api-server"), http_ok(r.url("airflow") + "/api/v2/version")),
                ("airflow-scheduler", airflow.argv(r, "scheduler"), _airflow_healthy(r, "scheduler")),
                ("airflow-dag-processor", airflow.argv(r, "dag-processor"), _airflow_healthy(r, "dag_processor")),
                ("airflow-triggerer", airflow.argv(r, "triggerer"), _airflow_healthy(r, "triggerer")),
            )
        ]
    return parts


def _airflow_healthy(r: Rehearsal, component: str) -> Check:
    def check() -> bool:
        try:
            with urllib.request.urlopen(r.url("airflow") + "/api/v2/monitor/health", timeout=2) as answer:
                return bool(json.load(answer)[component]["status"] == "healthy")
        except (OSError, ValueError, KeyError):
            return False

    return check


def base_environment(r: Rehearsal, name: str) -> dict[str, str]:
    """What every part gets. REHEARSAL_PART marks its whole process tree, so that `down` can prove it gone."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "AWS_", "KUBE", "REHEARSAL"))}
    own = {
        "REHEARSAL_STATE": str(r.state),
        "REHEARSAL_PART": f"{r.state}:{name}",
        "PYTHONPATH": str(r.root),
        "PYTHONUNBUFFERED": "1",
        # Without compiled modules every task would pay seconds of imports again.
        "PYTHONDONTWRITEBYTECODE": "",
    }
    return kept | own | aws_environment(r.url("aws"))


def write_files(r: Rehearsal) -> None:
    """Configuration that the parts read: audit policy, token webhook, Helm under its own name."""
    policy = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "resources": [{"group": "", "resources": ["events"]},
                                            {"group": "coordination.k8s.io", "resources": ["leases"]}]},
            {"level": "None", "verbs": ["get", "list", "watch"]},
            # Bodies of Secrets never reach a log.
            {"level": "Metadata", "resources": [{"group": "", "resources": ["secrets", "serviceaccounts/token"]},
                                                {"group": "authentication.k8s.io"}]},
            {"level": "Metadata"},
        ],
    }  # fmt: skip
    write_atomic(r.state / "audit-policy.json", json.dumps(policy, indent=1))
    write_atomic(r.state / "webhook.kubeconfig", webhook_kubeconfig(r), mode=0o600)
    write_atomic(r.helm, f'#!/bin/sh\nexec "{r.controlplane}" helm "$@"\n', mode=0o755)
