"""Helm on a control plane of a test's own: a chart whose values say how it fails, and Helm with its arguments kept."""

from __future__ import annotations

import http.client
import http.server
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nim_rollouts.clients.cluster import Cluster
from nim_rollouts.clients.helm import Helm
from nim_rollouts.clients.include import Include
from nim_rollouts.core.addons import Addon
from rehearsal.config import Rehearsal
from tests.rehearsal.chart_sources import serving

#: What Helm needs of a control plane: somebody who ends Jobs, and nobody who runs pods.
PARTS = {"etcd", "kube-apiserver", "kube-controller-manager", "cluster-setup"}

_TEMPLATE = """
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .Release.Name }}-first
data:
  text: {{ .Values.text | quote }}
---
{{- if eq .Values.mode "refused" }}
apiVersion: v1
kind: Service
metadata:
  name: {{ .Release.Name }}-second
spec:
  ports: [{port: 99999}]
---
{{- end }}
{{- if eq .Values.mode "hook" }}
# Nobody runs its pod: the Job ends when its time is up.
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .Release.Name }}-hook
  annotations:
    helm.sh/hook: pre-upgrade,pre-install
    helm.sh/hook-delete-policy: before-hook-creation
spec:
  activeDeadlineSeconds: {{ .Values.hook_s }}
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: hook, image: example.com/hook:1}]
---
{{- end }}
{{- if eq .Values.mode "unready" }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .Release.Name }}-second
spec:
  selector: {matchLabels: {app: "{{ .Release.Name }}"}}
  template:
    metadata: {labels: {app: "{{ .Release.Name }}"}}
    spec:
      containers: [{name: main, image: example.com/main:1}]
---
{{- end }}
{{- if eq .Values.mode "held" }}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .Release.Name }}-held
  finalizers: [nim-rollouts/test]
---
{{- end }}
"""


def write_chart(folder: Path, *, version: str = "1.0.0", text: str = "one") -> Path:
    """A chart whose value `mode` (good, refused, hook, unready, held) says what becomes of it."""
    (folder / "templates").mkdir(parents=True, exist_ok=True)
    (folder / "Chart.yaml").write_text(f"apiVersion: v2\nname: sample\nversion: {version}\n")
    (folder / "values.yaml").write_text(f"text: {text}\nmode: good\nhook_s: 1\nnested: {{key: 1}}\n")
    (folder / "templates" / "all.yaml").write_text(_TEMPLATE)
    return folder


class Bench:
    """A Helm whose every argument is written down, a chart, and what it made."""

    def __init__(self, r: Rehearsal, cluster: Cluster, folder: Path) -> None:
        self.r, self.cluster, self.folder = r, cluster, folder
        self.argv = folder / "argv"
        self.binary = folder / "helm"
        self.binary.write_text(f'#!/bin/sh\necho "$@" >> {self.argv}\nexec "{r.controlplane}" helm "$@"\n')
        self.binary.chmod(0o755)
        write_chart(folder / "charts" / "sample")
        (folder / "include" / "helm").mkdir(parents=True)
        self.helm = Helm(cluster, Include(folder / "include"), binary=str(self.binary))

    def addon(self, name: str, **changes: Any) -> Addon:
        return Addon(**{"name": name, "namespace": f"helm-{name}", "chart": "charts/sample", **changes})

    def with_values(self, addon: Addon, **values: Any) -> Addon:
        """The add-on with a values file of these."""
        (self.folder / "include" / "helm" / f"{addon.name}.yaml").write_text(json.dumps(values))
        return addon.model_copy(update={"values": f"helm/{addon.name}.yaml"})

    def text(self, addon: Addon) -> str | None:
        """What the release holds now, in the object that every upgrade changes."""
        found = self.cluster.get("v1", "ConfigMap", addon.namespace, f"{addon.name}-first")
        return found["data"]["text"] if found else None

    def statuses(self, addon: Addon) -> list[str]:
        return [one.status for one in self.helm.history(addon)]


@contextmanager
def letting_in(r: Rehearsal, lets_in: Callable[[str], bool]) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """The API server behind a guard with tokens of its own: its URL, and (token, status) of all that was asked."""
    asked: list[tuple[str, int]] = []
    upstream = r.url("apiserver").removeprefix("https://")
    context = ssl.create_default_context(cafile=str(r.ca))

    class Guard(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Nothing."""

        def do_GET(self) -> None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not lets_in(token):
                asked.append((token, 401))
                return self.send_error(401)
            passed = {name: value for name, value in self.headers.items() if name in ("Accept", "Content-Type")}
            connection = http.client.HTTPSConnection(upstream, context=context)
            connection.request(self.command, self.path, body, passed | {"Authorization": f"Bearer {r.admin_token}"})
            answer = connection.getresponse()
            asked.append((token, answer.status))
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.end_headers()
            while chunk := answer.read1(65536):  # as it comes: a watch has no end
                self.wfile.write(chunk)
            connection.close()

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    pki = r.state / "pki"  # over plain http Helm sends no token
    with serving(Guard, (pki / "server.crt", pki / "server.key")) as place:
        yield f"https://{place}", asked
