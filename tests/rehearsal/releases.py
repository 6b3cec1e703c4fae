"""Helm on a control plane of a test's own: a chart whose values say how it fails, and Helm with its arguments kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nim_rollouts.clients.cluster import Cluster
from nim_rollouts.clients.helm import Helm
from nim_rollouts.clients.include import Include
from nim_rollouts.core.addons import Addon
from rehearsal.config import Rehearsal

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
