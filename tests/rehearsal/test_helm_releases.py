"""Releases on a real API server, by a real Helm: no needless revision, nothing half-way, known by their content."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nim_rollouts.clients import helm_crds, helm_revisions
from nim_rollouts.clients.access import ClusterAccess, Token
from nim_rollouts.clients.cluster import Cluster
from nim_rollouts.clients.helm import Helm
from nim_rollouts.clients.helm_process import HelmEnded, HelmProcess
from nim_rollouts.clients.include import Include
from nim_rollouts.core.errors import (
    AccessDenied,
    ApplyConflict,
    HelmFailed,
    HelmUnavailable,
    LeftoversFound,
    NeedsHumanError,
    NimRolloutsError,
    PlatformNotReady,
)
from rehearsal.config import Rehearsal
from tests.rehearsal.chart_sources import Registry, classic
from tests.rehearsal.plane import admin, standing
from tests.rehearsal.releases import PARTS, Bench, letting_in, write_chart

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def r(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    with standing(tmp_path_factory.mktemp("plane"), PARTS) as plane:
        yield plane.r


@pytest.fixture(scope="module")
def cluster(r: Rehearsal) -> Cluster:
    return Cluster(admin(r))


@pytest.fixture
def bench(r: Rehearsal, cluster: Cluster, tmp_path: Path) -> Bench:
    return Bench(r, cluster, tmp_path)


def until(check: Callable[[], Any], within: float = 20.0) -> Any:
    deadline = time.monotonic() + within
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.05)
    return result


# --- half-way -----------------------------------------------------------------------------------------------------


def test_an_upgrade_refused_half_way_is_rolled_back_and_told(bench: Bench) -> None:
    addon = bench.addon("refused")
    bench.helm.upgrade_install(bench.with_values(addon, text="before"))
    bad = bench.with_values(addon, text="after", mode="refused")
    with pytest.raises(HelmFailed) as caught:
        bench.helm.upgrade_install(bad)
    assert caught.value.reason == "upgrade-rolled-back"
    said = str(caught.value)
    assert "revision 2 failed (refused)" in said and "99999" in said
    assert "gone back to what revision 1 was, as revision 3" in said
    assert bench.text(addon) == "before"
    assert bench.statuses(addon) == ["superseded", "failed", "deployed"]

    # What is back counts as what is installed: the same request is tried again, and the old one is no change.
    with pytest.raises(HelmFailed):
        bench.helm.upgrade_install(bad)
    assert not bench.helm.upgrade_install(bench.with_values(addon, text="before")).changed
    assert bench.helm.upgrade_install(bench.with_values(addon, text="after")).changed
    assert bench.text(addon) == "after"


def test_after_a_failed_way_back_the_next_one_leads_to_what_stood(bench: Bench, cluster: Cluster) -> None:
    addon = bench.addon("twice")
    bench.helm.upgrade_install(bench.with_values(addon, text="before"))
    # Somebody else's field: neither the upgrade nor the way back may write it.
    theirs = {"metadata": {"name": f"{addon.name}-first", "namespace": addon.namespace}, "data": {"text": "theirs"}}
    query = {"fieldManager": "somebody", "force": "true"}
    path = f"/api/v1/namespaces/{addon.namespace}/configmaps/{addon.name}-first"
    body = {"apiVersion": "v1", "kind": "ConfigMap", **theirs}
    cluster.rest.json("PATCH", path, query=query, body=body, content_type="application/apply-patch+yaml")
    with pytest.raises(HelmFailed, match="could not be taken back") as caught:
        bench.helm.upgrade_install(bench.with_values(addon, text="bad"))
    assert caught.value.reason == "roll-back-failed"
    # What Helm makes of it: the failed upgrade is called what a good one is called once another follows.
    assert bench.statuses(addon) == ["deployed", "superseded", "failed"]

    cluster.delete(body)
    with pytest.raises(HelmFailed, match="gone back to what revision 1 was, as revision 5") as caught:
        bench.helm.upgrade_install(bench.with_values(addon, text="worse", mode="refused"))
    assert caught.value.reason == "upgrade-rolled-back"
    assert bench.text(addon) == "before"
    assert bench.statuses(addon)[-2:] == ["failed", "deployed"]
    with pytest.raises(HelmFailed, match="no earlier good revision"):
        bench.helm.rollback(addon)
    with pytest.raises(HelmFailed, match="no good revision 2"):
        bench.helm.rollback(addon, to=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "wait_s", "why"), [("hook", None, "a hook failed"), ("unready", 2, "not ready in time")]
)
def test_an_upgrade_says_why_it_went_back(bench: Bench, mode: str, wait_s: int | None, why: str) -> None:
    addon = bench.addon(f"why-{mode}")
    bench.helm.upgrade_install(bench.with_values(addon, text="before"))
    addon = addon.model_copy(update={"wait_s": wait_s})
    with pytest.raises(HelmFailed, match=rf"revision 2 failed \({why}\).*gone back to what revision 1 was") as caught:
        bench.helm.upgrade_install(bench.with_values(addon, text="after", mode=mode))
    assert caught.value.reason == "upgrade-rolled-back"
    assert bench.text(addon) == "before"
    assert bench.cluster.get("apps/v1", "Deployment", addon.namespace, f"{addon.name}-second") is None


def test_a_first_install_that_fails_is_taken_away(bench: Bench) -> None:
    addon = bench.addon("first")
    with pytest.raises(HelmFailed, match="it was the first, and was taken away") as caught:
        bench.helm.upgrade_install(bench.with_values(addon, mode="refused"))
    assert caught.value.reason == "install-taken-away"
    assert bench.helm.status(addon) is None
    assert bench.text(addon) is None
    assert bench.helm.upgrade_install(bench.with_values(addon)).revision == 1


def test_what_does_not_render_begins_nothing(bench: Bench) -> None:
    addon = bench.addon("unrendered")
    (bench.folder / "charts" / "sample" / "templates" / "more.yaml").write_text('{{ required "give text2" .Values.t }}')
    with pytest.raises(HelmFailed, match="give text2") as caught:
        bench.helm.upgrade_install(addon)
    assert caught.value.reason == "helm-failed"
    assert bench.helm.status(addon) is None


def test_what_an_error_means(bench: Bench) -> None:
    """The words of Helm itself, where a second try would get the same, and where it would not."""
    addon = bench.addon("words")
    template = bench.folder / "charts" / "sample" / "templates" / "more.yaml"
    template.write_text("{{ if .Values.text }}\nkind: ConfigMap\n")
    with pytest.raises(HelmFailed, match="unexpected EOF") as caught:
        bench.helm.upgrade_install(addon)
    assert caught.value.reason == "helm-failed"

    def error(access: ClusterAccess) -> NimRolloutsError:
        with pytest.raises(HelmEnded) as ended:
            HelmProcess(str(bench.binary), access).run(["list"], about="r", timeout_s=60, namespace="default")
        return ended.value.as_error()

    url, ca = bench.r.url("apiserver"), bench.r.ca.read_text()
    assert isinstance(error(ClusterAccess(url, ca, lambda: "no-token-of-anybody")), AccessDenied)
    assert isinstance(error(ClusterAccess("https://127.0.0.1:1", ca, lambda: bench.r.admin_token)), HelmUnavailable)
    assert isinstance(error(ClusterAccess(url, None, lambda: bench.r.admin_token)), HelmFailed), "another authority"


@pytest.mark.slow
def test_a_helm_that_was_killed_is_no_hindrance(bench: Bench) -> None:
    addon = bench.addon("killed")
    bench.helm.upgrade_install(bench.with_values(addon, text="before"))
    slow = bench.with_values(addon, text="after", mode="hook", hook_s=600)
    task = os.fork()
    if task == 0:
        try:  # with a connection of its own
            Helm(Cluster(bench.cluster.access), bench.helm.include, binary=str(bench.binary)).upgrade_install(slow)
        finally:
            os._exit(0)
    until(lambda: bench.statuses(addon)[-1] == "pending-upgrade")
    os.kill(task, signal.SIGKILL)
    os.waitpid(task, 0)
    again = bench.helm.upgrade_install(bench.with_values(addon, text="after"))
    assert (again.changed, again.status) == (True, "deployed")
    assert bench.text(addon) == "after"


def test_what_somebody_has_deleted_is_made_again_and_the_rest_is_left_alone(bench: Bench, cluster: Cluster) -> None:
    """Helm's own record says "deployed" for ever: of the definitions and of the operator it knows nothing."""
    include = Include()
    helm = Helm(cluster, include, binary=str(bench.binary))
    addon = next(one for one in include.environment("rehearsal").addons if one.name == "nim-operator")
    crd = ("apiextensions.k8s.io/v1", "CustomResourceDefinition", None, "nimcaches.apps.nvidia.com")
    operator = ("apps/v1", "Deployment", addon.namespace, "nim-operator-k8s-nim-operator")
    assert helm.upgrade_install(addon).revision == 1
    for number, one in enumerate((crd, operator), 2):
        account = cluster.get("v1", "ServiceAccount", addon.namespace, operator[-1])
        live = cluster.get(*one)
        assert live is not None and cluster.delete(live)
        until(lambda one=one: cluster.get(*one) is None)
        again = helm.upgrade_install(addon)
        assert (again.changed, again.revision, again.status) == (True, number, "deployed")
        made = cluster.get(*one)
        assert made is not None and made["metadata"]["uid"] != live["metadata"]["uid"]
        assert account is not None
        assert cluster.get("v1", "ServiceAccount", addon.namespace, operator[-1]) == account
        assert not helm.upgrade_install(addon).changed
    helm_crds.remove(cluster, helm, addon)


def test_an_upgrade_by_hand_is_undone_by_the_next_run(bench: Bench) -> None:
    """It has our labels: Helm hands them on."""
    addon = bench.with_values(bench.addon("by-hand"), text="of the file")
    bench.helm.upgrade_install(addon)
    chart, place = bench.folder / "charts" / "sample", ["-n", addon.namespace, f"--kubeconfig={bench.r.kubeconfig}"]
    _helm(bench, "upgrade", addon.name, str(chart), *place, "--set", "text=by-hand")
    ours, by_hand = bench.helm.history(addon)
    assert (by_hand.status, by_hand.content) == ("deployed", ours.content)
    assert bench.helm.upgrade_install(addon).revision == 3
    assert bench.text(addon) == "of the file"
    assert not bench.helm.upgrade_install(addon).changed


def test_a_release_of_somebody_else_is_left_alone_until_it_is_adopted(bench: Bench) -> None:
    addon = bench.addon("foreign")
    chart, place = bench.folder / "charts" / "sample", ["-n", addon.namespace, f"--kubeconfig={bench.r.kubeconfig}"]
    _helm(bench, "install", addon.name, str(chart), *place, "--create-namespace", "--set", "text=theirs")
    with pytest.raises(NeedsHumanError) as caught:
        bench.helm.upgrade_install(addon)
    assert caught.value.reason == "release-foreign"
    assert helm_crds.remove(bench.cluster, bench.helm, addon) == {"uninstalled": False, "crds": []}
    assert (bench.text(addon), bench.statuses(addon)) == ("theirs", ["deployed"])

    # An upgrade of ours that fails leads back to theirs.
    adopting = addon.model_copy(update={"adopt": True})
    with pytest.raises(HelmFailed, match="gone back to what revision 1 was"):
        bench.helm.upgrade_install(bench.with_values(adopting, mode="refused", text="bad"))
    assert not bench.helm.uninstall(adopting), "it was given back"
    assert bench.text(addon) == "theirs"
    assert bench.helm.upgrade_install(bench.with_values(adopting, text="ours")).changed
    assert bench.text(addon) == "ours"
    assert not bench.helm.upgrade_install(bench.with_values(addon, text="ours")).changed, "it is ours now"
    assert helm_crds.remove(bench.cluster, bench.helm, addon)["uninstalled"]
    assert bench.text(addon) is None


def test_a_release_says_which_environment_has_made_it(bench: Bench) -> None:
    """Also after an upgrade by hand and a way back, so that a teardown finds what has left its environment's file."""
    access = bench.cluster.access

    def helm(environment: str) -> Helm:
        of_it = ClusterAccess(access.endpoint, access.ca_pem, access.token, environment)
        return Helm(Cluster(of_it), bench.helm.include, binary=str(bench.binary))

    mine, theirs = bench.addon("mine"), bench.addon("of-another")
    helm("one").upgrade_install(bench.with_values(mine, text="before"))
    helm("two").upgrade_install(theirs)
    assert helm_revisions.installed_by(bench.cluster, "one") == [(mine.namespace, mine.name)]
    assert helm_revisions.installed_by(bench.cluster, "two") == [(theirs.namespace, theirs.name)]
    with pytest.raises(HelmFailed, match="gone back"):
        helm("one").upgrade_install(bench.with_values(mine, mode="refused"))
    chart, place = bench.folder / "charts" / "sample", ["-n", mine.namespace, f"--kubeconfig={bench.r.kubeconfig}"]
    _helm(bench, "upgrade", mine.name, str(chart), *place, "--set", "text=by-hand")
    assert helm_revisions.installed_by(bench.cluster, "one") == [(mine.namespace, mine.name)]
    _helm(bench, "uninstall", mine.name, *place, "--keep-history")
    assert helm_revisions.installed_by(bench.cluster, "one") == []
    assert helm("two").uninstall(theirs)
    assert helm_revisions.installed_by(bench.cluster, "two") == []


# --- how Helm is let in -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_helm_that_outlives_its_token_goes_on_with_the_next(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in EKS, in small: a token lives for 62 s, is minted anew after 20, and Helm is at work for 68."""
    monkeypatch.setattr("nim_rollouts.clients.helm_process._TOKEN_LOOK_S", 1.0)
    minted: dict[str, float] = {}

    def mint() -> str:
        name = f"token-{len(minted)}"
        minted[name] = time.monotonic()
        return name

    def lets_in(token: str) -> bool:
        return time.monotonic() - minted[token] < 62

    addon = bench.with_values(bench.addon("long"), mode="unready")
    arguments = ["upgrade", "--install", addon.name, str(bench.folder / "charts" / "sample"), "--create-namespace"]
    arguments += ["--values", str(bench.folder / "include" / str(addon.values)), "--wait", "--timeout", "68s"]
    with letting_in(bench.r, lets_in) as (url, asked):
        access = ClusterAccess(url, bench.r.ca.read_text(), Token(mint, max_age_s=20))
        process = HelmProcess(str(bench.binary), access)
        with pytest.raises(HelmEnded, match="not ready"):
            process.run(arguments, about=addon.name, timeout_s=150, namespace=addon.namespace)
    assert [status for _, status in asked if status == 401] == []
    assert asked[0][0] == "token-0" and asked[-1][0] > "token-1"
    # Its last word came through: without a younger token the release would be pending for ever.
    assert bench.statuses(addon) == ["failed"]
    assert not any(token in bench.argv.read_text() for token in minted)


# --- definitions that others have applied -------------------------------------------------------------------------


def _columns(name: str) -> dict[str, Any]:
    """A definition whose columns say who wrote it last."""
    column = {"name": name, "type": "string", "jsonPath": ".spec.x"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema, "additionalPrinterColumns": [column]}
    names = {"kind": "Shared", "plural": "shareds", "singular": "shared", "listKind": "SharedList"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "shareds.test.nim-rollouts", "annotations": {"test/by": name}},
        "spec": {"group": "test.nim-rollouts", "scope": "Namespaced", "names": names, "versions": [version]},
    }


def _theirs(bench: Bench, how: str) -> None:
    """Somebody writes the same definition in another version, by kubectl or as the Job of NVIDIA's charts does."""
    theirs = _columns("theirs")
    live = bench.cluster.get(theirs["apiVersion"], theirs["kind"], None, theirs["metadata"]["name"])
    if how == "crd-apply-tool":
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        if live is not None:
            theirs["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
        path, method = (f"{path}/{live['metadata']['name']}", "PUT") if live else (path, "POST")
        bench.cluster.rest.json(method, path, query={"fieldManager": how}, body=theirs)
        return
    file = bench.folder / "theirs.json"
    file.write_text(json.dumps(theirs))
    command = ["kubectl", f"--kubeconfig={bench.r.kubeconfig}", *how.split(), "-f", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("apply", "apply"),
        ("create", "replace"),
        ("apply --server-side", "apply --server-side --force-conflicts"),
        ("crd-apply-tool", "crd-apply-tool"),
    ],
)
def test_definitions_that_others_apply_are_in_nobodys_way(bench: Bench, before: str, after: str) -> None:
    """NVIDIA's definitions by hand, then our chart's; and the other way round."""
    addon = bench.addon("shared", requires={"crds": ["shareds.test.nim-rollouts"]})
    crds = bench.folder / "charts" / "sample" / "crds"
    crds.mkdir()

    def columns() -> str:
        live = bench.cluster.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", None, addon.requires.crds[0])
        assert live is not None
        return f"{live['spec']['versions'][0]['additionalPrinterColumns'][0]['name']}"

    _theirs(bench, before)
    (crds / "shared.yaml").write_text(json.dumps(_columns("ours")))
    bench.helm.upgrade_install(addon)
    assert columns() == "ours"
    _theirs(bench, after)
    assert columns() == "theirs"
    (crds / "shared.yaml").write_text(json.dumps(_columns("newer")))
    assert bench.helm.upgrade_install(addon).revision == 2
    assert columns() == "newer"
    assert helm_crds.remove(bench.cluster, bench.helm, addon) == {"uninstalled": True, "crds": addon.requires.crds}


def test_a_definition_that_somebody_has_edited_is_told(bench: Bench) -> None:
    addon = bench.addon("edited")
    crds = bench.folder / "charts" / "sample" / "crds"
    crds.mkdir()
    _theirs(bench, "apply --server-side --field-manager=kubectl-edit")
    (crds / "shared.yaml").write_text(json.dumps(_columns("ours")))
    with pytest.raises(ApplyConflict, match="is owned by kubectl-edit"):
        bench.helm.upgrade_install(addon)
    assert bench.helm.status(addon) is None
    bench.cluster.delete(_columns("theirs"))


# --- roll back, state, uninstall ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_going_back_by_hand(bench: Bench) -> None:
    addon = bench.addon("back")
    for text in ("one", "two", "three"):
        bench.helm.upgrade_install(bench.with_values(addon, text=text))
    now = bench.helm.rollback(addon)
    assert (now.revision, now.status, bench.text(addon)) == (4, "deployed", "two")
    assert bench.helm.rollback(addon, to=1).revision == 5
    assert bench.text(addon) == "one"
    with pytest.raises(HelmFailed, match="no good revision 17") as caught:
        bench.helm.rollback(addon, to=17)
    assert caught.value.reason == "no-earlier-revision"
    # The environment's file is in force again with the next run.
    assert bench.helm.upgrade_install(bench.with_values(addon, text="three")).changed
    history = bench.helm.history(addon)
    assert [one.revision for one in history] == [2, 3, 4, 5, 6]
    assert history[-1].content == history[1].content
    with pytest.raises(HelmFailed, match="no earlier good revision"):
        bench.helm.rollback(bench.addon("never-installed"))


@pytest.mark.slow
def test_an_uninstall_that_ended_half_way_goes_on(bench: Bench) -> None:
    addon = bench.addon("held")
    bench.helm.upgrade_install(bench.with_values(addon, mode="held"))
    with pytest.raises((HelmFailed, HelmUnavailable)):
        bench.helm.uninstall(addon, wait_s=1)
    held = bench.cluster.get("v1", "ConfigMap", addon.namespace, f"{addon.name}-held")
    assert held is not None and held["metadata"]["finalizers"], "nobody strips a finalizer"
    assert bench.cluster.patch(held, {"metadata": {"finalizers": []}})
    assert bench.helm.upgrade_install(bench.with_values(addon, text="new")).status == "deployed"
    assert bench.text(addon) == "new"
    assert bench.helm.uninstall(addon)
    assert not bench.helm.uninstall(addon)
    assert bench.text(addon) is None


@pytest.mark.slow
def test_the_operator_goes_after_its_resources_and_its_crds_after_it(bench: Bench, cluster: Cluster) -> None:
    include = Include()
    helm = Helm(cluster, include, binary=str(bench.binary))
    name = "servicemonitors.monitoring.coreos.com"
    addon = next(one for one in include.environment("rehearsal").addons if one.name == "kube-prometheus-stack")
    # One CRD that nobody requires is known by its label alone.
    required = addon.requires.model_copy(update={"crds": [name]})
    addon = addon.model_copy(update={"requires": required})
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": addon.namespace}})
    labels = {"app.kubernetes.io/managed-by": "nim-rollouts"}
    metadata = {"name": "grafana-admin", "namespace": addon.namespace, "labels": labels}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata})
    helm.upgrade_install(addon)
    until(lambda: _established(cluster, name))
    monitor = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": "held", "namespace": addon.namespace, "finalizers": ["nim-rollouts/test"]},
        "spec": {},
    }
    cluster.apply(monitor)
    # What the release itself brings goes with it, and keeps nobody.
    marks = {"meta.helm.sh/release-name": addon.name, "meta.helm.sh/release-namespace": addon.namespace}
    own = {"name": "own", "namespace": addon.namespace, "annotations": marks}
    cluster.apply({**monitor, "metadata": own})
    with pytest.raises(LeftoversFound, match=f"needed by ServiceMonitor/held in {addon.namespace}"):
        helm_crds.remove(cluster, helm, addon)
    assert helm.status(addon) is not None, "its operator must still be there to let go of the finalizer"

    live = cluster.get("monitoring.coreos.com/v1", "ServiceMonitor", addon.namespace, "held")
    assert live is not None and live["metadata"]["finalizers"]
    cluster.patch(live, {"metadata": {"finalizers": []}})
    cluster.delete(live)
    until(lambda: not helm_crds.in_use(cluster, addon, helm_crds.definitions(cluster, addon)))
    gone = helm_crds.remove(cluster, helm, addon)
    assert gone == {"uninstalled": True, "crds": ["podmonitors.monitoring.coreos.com", name]}
    assert cluster.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", None, name) is None
    assert cluster.get("v1", "Secret", addon.namespace, "grafana-admin") is None
    assert helm_crds.remove(cluster, helm, addon) == {"uninstalled": False, "crds": []}


def _established(cluster: Cluster, name: str) -> bool:
    crd = cluster.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", None, name)
    conditions = ((crd or {}).get("status") or {}).get("conditions") or []
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)


# --- values from terraform ----------------------------------------------------------------------------------------


def test_outputs_of_terraform_become_values_and_no_arguments(bench: Bench, r: Rehearsal) -> None:
    addon = bench.addon("outputs", values_from={"text": "cluster_name", "nested.key": "zones"})
    addon = bench.with_values(addon, text="of the file")
    first = bench.helm.upgrade_install(addon, outputs={"cluster_name": "canary-name", "zones": ["a"]})
    assert bench.text(addon) == "canary-name"
    assert not bench.helm.upgrade_install(addon, outputs={"cluster_name": "canary-name", "zones": ["a"]}).changed
    other = bench.helm.upgrade_install(addon, outputs={"cluster_name": "other-name", "zones": ["a"]})
    assert (other.revision, other.chart_digest) == (2, first.chart_digest)
    with pytest.raises(PlatformNotReady, match="terraform's output cluster_name, which is null"):
        bench.helm.upgrade_install(addon, outputs={"cluster_name": None, "zones": []})
    said = bench.argv.read_text()
    assert "--values" in said
    assert "canary-name" not in said and "other-name" not in said
    assert r.admin_token not in said


# --- where charts come from ---------------------------------------------------------------------------------------


def _package(bench: Bench, to: Path, **chart: str) -> Path:
    source = write_chart(bench.folder / "source" / "sample", **chart)
    to.mkdir(exist_ok=True)
    _helm(bench, "package", str(source), "--destination", str(to))
    return to / f"sample-{chart.get('version', '1.0.0')}.tgz"


def _helm(bench: Bench, *arguments: str) -> str:
    done = subprocess.run([str(bench.binary), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_classic_repository(bench: Bench) -> None:
    folder = bench.folder / "repository"
    package = _package(bench, folder)
    _helm(bench, "repo", "index", str(folder))
    digest = f"sha256:{hashlib.sha256(package.read_bytes()).hexdigest()}"
    with classic(folder) as url:
        addon = bench.addon("classic", chart="sample", repository=url, version="1.0.0")
        first = bench.helm.upgrade_install(addon)
        assert (first.changed, first.chart_digest, first.chart_version) == (True, digest, "1.0.0")
        assert digest in _helm(
            bench, "history", addon.name, "-n", addon.namespace, f"--kubeconfig={bench.r.kubeconfig}"
        )
        assert not bench.helm.upgrade_install(addon).changed

        other = addon.model_copy(update={"digest": "sha256:" + "0" * 64})
        with pytest.raises(HelmFailed, match=digest) as caught:
            bench.helm.upgrade_install(other)
        assert caught.value.reason == "chart-digest-differs"

        # Somebody puts another file under the same version; the index still has the old digest, and Helm takes it.
        _package(bench, folder, text="another")
        with pytest.raises(HelmFailed, match="changed under the same version 1.0.0") as caught:
            bench.helm.upgrade_install(addon)
        assert caught.value.reason == "chart-changed"
        assert bench.text(addon) == "one"
        changed = f"sha256:{hashlib.sha256(package.read_bytes()).hexdigest()}"
        knowingly = addon.model_copy(update={"digest": changed})
        assert bench.helm.upgrade_install(knowingly).chart_digest == changed
        assert bench.text(addon) == "another"

        with pytest.raises(HelmFailed, match="version 9.9.9") as caught:
            bench.helm.upgrade_install(addon.model_copy(update={"version": "9.9.9"}))
        assert caught.value.reason == "chart-missing"
    # The repository is away now: what is pinned and installed needs it not, everything else waits for it.
    assert not bench.helm.upgrade_install(knowingly).changed
    with pytest.raises(HelmUnavailable, match="cannot be fetched"):
        bench.helm.upgrade_install(addon)


@pytest.mark.slow
def test_an_oci_registry(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(bench.r.ca))
    pki, registry = bench.r.state / "pki", Registry()
    with registry.serve((pki / "server.crt", pki / "server.key")) as place:
        package = _package(bench, bench.folder / "packages", version="1.2.3")
        _helm(bench, "push", str(package), f"oci://{place}/charts")
        addon = bench.addon("oci", chart=f"oci://{place}/charts/sample", version="1.2.3")
        first = bench.helm.upgrade_install(addon)
        assert first.chart_digest == registry.tags["charts/sample:1.2.3"]
        assert bench.text(addon) == "one"
        pinned = addon.model_copy(update={"digest": first.chart_digest})
        assert not bench.helm.upgrade_install(pinned).changed

        _helm(bench, "push", str(_package(bench, bench.folder / "packages", version="1.2.3", text="another")),
              f"oci://{place}/charts")  # fmt: skip
        moved = registry.tags["charts/sample:1.2.3"]
        assert moved != first.chart_digest
        with pytest.raises(HelmFailed) as caught:
            bench.helm.upgrade_install(addon)
        assert caught.value.reason == "chart-changed"
        with pytest.raises(HelmFailed) as caught:
            bench.helm.upgrade_install(bench.with_values(pinned, text="x"))
        assert caught.value.reason == "chart-digest-differs"
        assert bench.text(addon) == "one"
        with pytest.raises(HelmFailed) as caught:
            bench.helm.upgrade_install(addon.model_copy(update={"version": "7.0.0"}))
        assert caught.value.reason == "chart-missing"
