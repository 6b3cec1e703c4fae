"""What Helm's Secrets tell of a release: which of its revisions stood once, and to which one it goes back."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest

from nim_rollouts.clients import helm_revisions
from nim_rollouts.clients.helm_revisions import CHART_LABEL, VALUES_LABEL, HelmStatus
from nim_rollouts.core.manifests import ENVIRONMENT_LABEL
from tests.unit.operators.conftest import FakeCluster

# Helm 4.3's words, as a real one wrote them.
GOOD = "chart sha256:a"
BACK = "Rollback to 1"
UPGRADE_FAILED = 'Upgrade "r" failed: conflict occurred while applying object n/r-first /v1, Kind=ConfigMap'
ROLLBACK_FAILED = 'Rollback "r" failed: conflict occurred while applying object n/r-first /v1, Kind=ConfigMap'
INSTALL_FAILED = 'Release "r" failed: server-side apply failed for object n/r-second /v1, Kind=Service'


def secret(revision: int, status: str, description: str, content: str) -> dict[str, Any]:
    release = {"name": "r", "version": revision, "info": {"status": status, "description": description}}
    packed = base64.b64encode(base64.b64encode(gzip.compress(json.dumps(release).encode()))).decode()
    labels = {"version": str(revision), "status": status}
    if content:
        labels |= {CHART_LABEL: content, VALUES_LABEL: "v"}
    return {"metadata": {"labels": labels}, "data": {"release": packed}}


class Secrets:
    def __init__(self, *secrets: dict[str, Any]) -> None:
        self.secrets = secrets

    def list(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        return list(self.secrets)


def history(*revisions: tuple[str, str, str]) -> list[HelmStatus]:
    secrets = [secret(number, *one) for number, one in enumerate(revisions, 1)]
    return helm_revisions.history(Secrets(*reversed(secrets)), "n", "r")  # type: ignore[arg-type]


STOOD, FAILED = ("superseded", GOOD, "a"), ("failed", UPGRADE_FAILED, "b")
FAILED_LATER = ("superseded", UPGRADE_FAILED, "b")


@pytest.mark.parametrize(
    ("revisions", "number"),
    [
        ([("deployed", GOOD, "a"), FAILED], 1),
        # A failed way back: Helm calls the failed upgrade superseded.
        ([("deployed", GOOD, "a"), FAILED_LATER, ("failed", ROLLBACK_FAILED, "a"), ("failed", UPGRADE_FAILED, "c")], 1),
        # The same, after a Helm that was killed between its last two writes: nothing is deployed.
        ([STOOD, FAILED_LATER, ("failed", ROLLBACK_FAILED, "a"), ("failed", UPGRADE_FAILED, "c")], 1),
        ([STOOD, ("superseded", BACK, "a"), FAILED], 2),
        ([STOOD, ("superseded", "Preparing upgrade", "b"), FAILED], 1),
        ([("superseded", INSTALL_FAILED, "a"), FAILED], None),
        ([FAILED], None),
    ],
)
def test_a_failed_upgrade_goes_back_to_what_stood(revisions: list[tuple[str, str, str]], number: int | None) -> None:
    found = helm_revisions.good(history(*revisions)[:-1])
    assert (found.revision if found else None) == number


@pytest.mark.parametrize(
    ("revisions", "to", "number"),
    [
        ([STOOD, ("deployed", GOOD, "b")], None, 1),
        ([STOOD, ("superseded", GOOD, "b"), ("deployed", GOOD, "b")], None, 1),
        ([STOOD, FAILED_LATER, ("deployed", GOOD, "a")], None, None),
        ([("deployed", GOOD, "a"), FAILED_LATER, ("failed", ROLLBACK_FAILED, "a")], None, 1),
        ([STOOD, ("deployed", GOOD, "b"), ("failed", UPGRADE_FAILED, "b")], None, 2),
        ([STOOD, FAILED_LATER, ("deployed", GOOD, "a")], 1, 1),
        ([STOOD, FAILED_LATER, ("deployed", GOOD, "a")], 2, None),
        ([], None, None),
    ],
)
def test_going_back_by_hand(revisions: list[tuple[str, str, str]], to: int | None, number: int | None) -> None:
    found = helm_revisions.earlier(history(*revisions), to)
    assert (found.revision if found else None) == number


@pytest.mark.parametrize(
    ("newest", "held"),
    [
        (("deployed", GOOD, "a"), True),
        (("deployed", BACK, "a"), True),
        (("deployed", "Upgrade complete", "a"), False),
        (("deployed", GOOD, "b"), False),
        (("failed", UPGRADE_FAILED, "a"), False),
    ],
)
def test_an_upgrade_by_hand_is_no_content_of_ours(newest: tuple[str, str, str], held: bool) -> None:
    assert helm_revisions.holds(history(newest)[0], "sha256:a", "v") is held


OURS, THEIRS = ("superseded", GOOD, "a"), ("superseded", "Install complete", "")


@pytest.mark.parametrize(
    ("revisions", "ours"),
    [
        ([OURS, ("deployed", GOOD, "b")], True),
        ([("failed", INSTALL_FAILED, "a")], True),
        ([THEIRS, ("pending-upgrade", "Preparing upgrade", "a")], True),
        # An old Helm that hands no labels on.
        ([OURS, ("deployed", "Upgrade complete", "")], True),
        ([("deployed", "Install complete", "")], False),
        ([THEIRS, ("failed", UPGRADE_FAILED, "b"), ("deployed", BACK, "")], False),
        ([THEIRS, FAILED_LATER, ("failed", ROLLBACK_FAILED, ""), ("deployed", BACK, "")], False),
        ([], False),
    ],
)
def test_whose_a_release_is(revisions: list[tuple[str, str, str]], ours: bool) -> None:
    assert helm_revisions.are_ours(history(*revisions)) is ours


@pytest.mark.parametrize("data", [{}, {"release": "?"}, {"release": base64.b64encode(b"H4sI").decode()}])
def test_what_cannot_be_read_says_nothing(data: dict[str, str]) -> None:
    [one] = helm_revisions.history(Secrets({**secret(1, "superseded", "", "a"), "data": data}), "n", "r")  # type: ignore[arg-type]
    assert (one.description, one.is_good) == ("", True)


def test_the_releases_of_an_environment() -> None:
    cluster = FakeCluster()

    def put(namespace: str, name: str, *revisions: tuple[str, str | None]) -> None:
        for number, (status, environment) in enumerate(revisions, 1):
            labels = {"owner": "helm", "name": name, "version": str(number), "status": status}
            labels |= {ENVIRONMENT_LABEL: environment} if environment else {}
            metadata = {"name": f"sh.helm.release.v1.{name}.v{number}", "namespace": namespace, "labels": labels}
            cluster.put({"apiVersion": "v1", "kind": "Secret", "metadata": metadata})

    put("b", "ours", ("superseded", None), ("deployed", "one"))
    put("a", "ours", ("failed", "one"))
    put("a", "uninstalled", ("uninstalled", "one"))
    put("a", "of-another", ("deployed", "two"))
    put("a", "taken-over", ("superseded", "one"), ("deployed", "two"))
    put("a", "given-back", ("superseded", None), ("failed", "one"), ("deployed", None))
    put("a", "of-nobody", ("deployed", None))
    assert helm_revisions.installed_by(cluster, "one") == [("a", "ours"), ("b", "ours")]  # type: ignore[arg-type]
