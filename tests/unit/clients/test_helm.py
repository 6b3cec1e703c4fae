"""Helm without a cluster: what it is given, what it is told, how its errors are read."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nim_rollouts.clients import helm_charts
from nim_rollouts.clients.access import ClusterAccess
from nim_rollouts.clients.helm import Helm, _values_digest, find_binary
from nim_rollouts.clients.helm_process import HelmEnded, HelmProcess, _inherited
from nim_rollouts.clients.helm_revisions import CHART_LABEL, VALUES_LABEL
from nim_rollouts.clients.include import Include
from nim_rollouts.core.addons import Requires
from nim_rollouts.core.errors import (
    AccessDenied,
    HelmFailed,
    HelmUnavailable,
    NeedsHumanError,
    NimRolloutsError,
    ToolMissing,
)
from nim_rollouts.core.spec import Addon

TOKEN = "k8s-aws-v1.secret"
CRD = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: a.b.c}\n"


class Recorder:
    """The cluster's part: releases as Secrets, and what was applied."""

    access = ClusterAccess("https://127.0.0.1:1", "CA", lambda: TOKEN, "the-environment")

    def __init__(self) -> None:
        self.secrets: list[dict[str, Any]] = []
        self.applied: list[dict[str, Any]] = []
        self.there: dict[tuple[str, str | None, str], dict[str, Any]] = {}

    def list(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        return self.secrets

    def get(self, _: str, kind: str, namespace: str | None, name: str) -> dict[str, Any] | None:
        return self.there.get((kind, namespace, name))

    def apply(self, obj: dict[str, Any], **_: Any) -> None:
        self.applied.append(obj)


@pytest.fixture
def include(tmp_path: Path) -> Include:
    chart = tmp_path / "charts" / "c"
    chart.mkdir(parents=True)
    (chart / "Chart.yaml").write_text("name: c\nversion: 1.2.0\n")
    (tmp_path / "include" / "helm").mkdir(parents=True)
    (tmp_path / "include" / "helm" / "v.yaml").write_text("a: 1\n")
    return Include(tmp_path / "include")


def helm(include: Include, script: str) -> tuple[Helm, Recorder]:
    binary = include.repository / "helm"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    recorder = Recorder()
    return Helm(recorder, include, binary=str(binary)), recorder  # type: ignore[arg-type]


ADDON = Addon(name="r", namespace="n", chart="charts/c", values="helm/v.yaml")


def test_what_helm_is_given(include: Include) -> None:
    seen = include.repository / "seen"
    seen.mkdir()
    one, cluster = helm(
        include,
        f'case "$1" in show) printf \'{CRD}\' | sed "s/\\\\\\\\n/\\n/g"; exit;; esac\n'
        f'cp "$KUBECONFIG" {seen}/kubeconfig; cd $(dirname "$KUBECONFIG"); cp token {seen}/token; '
        f"stat -c %a kubeconfig token > {seen}/mode; "
        f'dirname "$KUBECONFIG" > {seen}/folder; echo "$@" > {seen}/argv',
    )
    with pytest.raises(HelmFailed, match="is not there after"):
        one.upgrade_install(ADDON)
    assert [obj["metadata"]["name"] for obj in cluster.applied] == ["a.b.c"]
    config = json.loads((seen / "kubeconfig").read_text())
    folder = Path((seen / "folder").read_text().strip())
    assert config["users"][0]["user"] == {"tokenFile": str(folder / "token")}
    assert (seen / "token").read_text() == TOKEN
    assert (seen / "mode").read_text().split() == ["600", "600"]
    assert not folder.exists()
    arguments = (seen / "argv").read_text()
    assert TOKEN not in arguments and "secret" not in arguments
    for flag in (
        "upgrade --install r",
        "--skip-crds",
        f"--labels {CHART_LABEL}=",
        ",nim-rollouts/environment=the-environment ",
        "--namespace n",
        "--create-namespace",
    ):
        assert flag in arguments
    assert "--wait" not in arguments


def test_a_helm_that_runs_long_finds_a_younger_token(
    include: Include, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A token lives for a quarter of an hour; Helm may wait longer than that, and reads its file again."""
    monkeypatch.setattr("nim_rollouts.clients.helm_process._TOKEN_LOOK_S", 0.05)
    token = '$(dirname "$KUBECONFIG")/token'
    one, _ = helm(
        include,
        f"until grep -q younger {token}; do sleep 0.02; done\n"
        f'stat -c %a {token} >&2; ls $(dirname "$KUBECONFIG") >&2; echo "$@" >&2; exit 1',
    )
    minted = iter(["k8s-aws-v1.old", "k8s-aws-v1.old", None, "k8s-aws-v1.younger"])

    def mint() -> str:
        made = next(minted, "k8s-aws-v1.younger")
        if made is None:
            raise AccessDenied("AWS is away, and k8s-aws-v1.old is no secret to tell")
        return made

    process = HelmProcess(one.process.binary, ClusterAccess("https://127.0.0.1:1", "CA", mint))
    with pytest.raises(HelmEnded) as caught:
        process.run(["upgrade"], about="r", timeout_s=20, namespace="n")
    assert caught.value.text == "600 kubeconfig token upgrade --namespace n"
    assert "no new token for Helm: AWS is away" in caplog.text
    assert "v1.old" not in caplog.text and "younger" not in caplog.text


def test_a_helm_that_does_not_end_is_given_up(include: Include, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nim_rollouts.clients.helm_process._TOKEN_LOOK_S", 0.05)
    one, _ = helm(include, f"echo $$ > {include.repository}/pid; exec sleep 60")
    with pytest.raises(HelmUnavailable, match="helm upgrade of r did not end in 0 s"):
        HelmProcess(one.process.binary, Recorder.access).run(["upgrade"], about="r", timeout_s=0.4, namespace="n")
    assert not Path("/proc", (include.repository / "pid").read_text().strip()).exists()


def test_nothing_is_started_when_nothing_has_changed(include: Include) -> None:
    one, cluster = helm(include, "exit 9")
    cluster.secrets = [installed(include)]
    result = one.upgrade_install(ADDON)
    assert (result.changed, result.revision, result.status) == (False, 3, "deployed")
    (include.root / "helm" / "v.yaml").write_text("a: 2\n")
    with pytest.raises(HelmFailed):
        one.upgrade_install(ADDON)


def installed(include: Include) -> dict[str, Any]:
    """Revision 3 of a release with the chart and the values of `include`."""
    labels = {"version": "3", "status": "deployed", CHART_LABEL: digest(include)[7:47]}
    labels[VALUES_LABEL] = _values_digest({"a": 1}, {})
    return {"metadata": {"labels": labels}}


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize(
    "lost", [("CustomResourceDefinition", None, "a.b.c"), ("Deployment", "n", "operator")], ids=["crd", "deployment"]
)
def test_a_release_that_lacks_what_it_must_bring_is_not_unchanged(
    include: Include, lost: tuple[str, str | None, str], pinned: bool
) -> None:
    one, cluster = helm(include, "echo run >&2; exit 9")
    cluster.secrets = [installed(include)]
    addon = ADDON.model_copy(update={"requires": Requires(crds=["a.b.c"], deployments=["operator"])})
    addon = addon.model_copy(update={"digest": digest(include) if pinned else None})
    cluster.there = {
        ("CustomResourceDefinition", None, "a.b.c"): {"metadata": {}},
        ("Deployment", "n", "operator"): {"metadata": {}},
    }
    assert not one.upgrade_install(addon).changed
    found = cluster.there.pop(lost)
    with pytest.raises(HelmFailed, match="run"):
        one.upgrade_install(addon)
    cluster.there[lost] = {"metadata": {**found["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    with pytest.raises(HelmFailed, match="run"):
        one.upgrade_install(addon)


def digest(include: Include) -> str:
    return helm_charts.fetch(HelmProcess("/no/helm"), ADDON, include, include.repository, 5).digest


def test_digests_move_with_any_file(include: Include) -> None:
    before = digest(include)
    assert before.startswith("sha256:") and len(before) == 71
    (include.repository / "charts" / "c" / "x").write_text("")
    assert digest(include) != before


@pytest.mark.parametrize("pinned", [False, True])
def test_a_folder_of_another_version_is_refused(include: Include, pinned: bool) -> None:
    one, cluster = helm(include, "exit 9")
    cluster.secrets = [installed(include)]
    addon = ADDON.model_copy(update={"digest": digest(include) if pinned else None})
    assert not one.upgrade_install(addon.model_copy(update={"version": "1.2.0"})).changed
    with pytest.raises(HelmFailed, match="asks for version 1.3.0, but the chart in charts/c is 1.2.0") as caught:
        one.upgrade_install(addon.model_copy(update={"version": "1.3.0"}))
    assert caught.value.reason == "chart-version-differs"


@pytest.mark.parametrize(
    ("says", "error"),
    [
        ("Error: dial tcp 127.0.0.1:1: connect: connection refused", HelmUnavailable),
        ("Error: UPGRADE FAILED: another operation (install/upgrade/rollback) is in progress", HelmUnavailable),
        ("Error: execution error at (c/templates/x.yaml): a is required", HelmFailed),
    ],
)
def test_errors(include: Include, says: str, error: type[NimRolloutsError]) -> None:
    one, _ = helm(include, f"echo '{says} token k8s-aws-v1.abcdef' >&2; exit 1")
    with pytest.raises(error) as caught:
        one.crds(ADDON)
    assert "abcdef" not in str(caught.value)


def test_missing_parts(include: Include, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one, _ = helm(include, "exit 9")
    with pytest.raises(HelmFailed) as caught:
        one.upgrade_install(ADDON.model_copy(update={"chart": "charts/none"}))
    assert caught.value.reason == "chart-missing"
    with pytest.raises(HelmFailed) as caught:
        one.upgrade_install(ADDON.model_copy(update={"values": "helm/none.yaml"}))
    assert caught.value.reason == "values-missing"
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("HELM", raising=False)
    with pytest.raises(ToolMissing, match="not on PATH"):
        find_binary()
    monkeypatch.setenv("HELM", "/no/such/helm")
    with pytest.raises(ToolMissing, match="HELM=/no/such/helm"):
        find_binary()
    program = include.repository / "helm"
    monkeypatch.setenv("HELM", str(program))
    assert find_binary() == str(program)
    assert os.stat(program).st_mode & stat.S_IXUSR


def test_helm_does_not_see_airflows_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIRFLOW_CONN_NGC_DEFAULT", "AIRFLOW__CORE__FERNET_KEY", "AWS_SECRET_ACCESS_KEY", "KUBECONFIG"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    inherited = _inherited()
    assert "secret" not in inherited.values()
    assert inherited["HTTPS_PROXY"] == "http://proxy" and "PATH" in inherited


def test_helm_ends_with_its_task(include: Include, tmp_path: Path) -> None:
    """A task is killed by SIGKILL, and can tell nobody: its Helm must not go on beside the next try's."""
    pid_file = tmp_path / "pid"
    one, _ = helm(include, f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 60")
    task = os.fork()
    if task == 0:
        one.crds(ADDON)
        os._exit(0)
    _until(pid_file.exists)
    of_helm = Path("/proc", pid_file.read_text().strip())
    assert of_helm.exists()
    os.kill(task, signal.SIGKILL)
    os.waitpid(task, 0)
    _until(lambda: not of_helm.exists() or ") Z " in (of_helm / "stat").read_text())


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


THEIRS = {"version": "1", "status": "deployed"}


def test_a_release_of_somebody_else_is_left_alone(include: Include) -> None:
    seen = include.repository / "seen"
    one, cluster = helm(include, f'echo "$1" >> {seen}')
    cluster.secrets = [{"metadata": {"labels": THEIRS}}]
    assert one.uninstall(ADDON) is False
    for touch in (one.upgrade_install, one.rollback, one.own):
        with pytest.raises(NeedsHumanError, match="release r in n was installed by somebody else") as caught:
            touch(ADDON)
        assert (caught.value.reason, caught.value.layer) == ("release-foreign", "helm")
        assert "adopt: true" in caught.value.hint
    assert not seen.exists(), "Helm is not even started"
    assert cluster.applied == []


def test_a_release_that_is_adopted_becomes_ours(include: Include, caplog: pytest.LogCaptureFixture) -> None:
    seen = include.repository / "seen"
    one, cluster = helm(include, f'echo "$1" >> {seen}')
    cluster.secrets = [{"metadata": {"labels": THEIRS}}]
    adopting = ADDON.model_copy(update={"adopt": True})
    assert one.uninstall(adopting) is False, "not before it was taken over"
    assert one.upgrade_install(adopting).changed
    assert "it is taken over" in caplog.text
    assert seen.read_text().split() == ["show", "upgrade"]
    # Whoever forgets the word later has still taken it over.
    cluster.secrets.append({"metadata": {"labels": {**THEIRS, "version": "2", CHART_LABEL: "ab"}}})
    assert one.own(ADDON) is not None
    assert one.uninstall(ADDON) is True
    assert "whatever it was" not in caplog.text
    assert one.uninstall(adopting) is True
    assert "whatever it was before it was adopted goes with it" in caplog.text


@pytest.mark.parametrize(
    "labels", [{CHART_LABEL: "ab", VALUES_LABEL: "cd"}, {CHART_LABEL: "ab"}], ids=["without a source", "chart alone"]
)
def test_a_release_of_an_earlier_version_of_ours_is_ours(include: Include, labels: dict[str, str]) -> None:
    one, cluster = helm(include, "exit 0")
    cluster.secrets = [{"metadata": {"labels": {**THEIRS, "status": "failed", **labels}}}]
    assert one.own(ADDON) is not None
    assert one.upgrade_install(ADDON).changed
