"""The image map and image pulls, the latter against the NGC stand-in itself."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from rehearsal import faults
from rehearsal.config import Rehearsal
from rehearsal.ngc import Ngc
from rehearsal.runner.images import NOBODY, ImageMap, ImageMapError, image_texts, listening
from rehearsal.runner.registry import PullError, Registry, login

IMAGE = "nvcr.io/nim/meta/llama-3.1-8b-instruct:1.3.3"


@pytest.fixture
def r(tmp_path: Path) -> Rehearsal:
    root = Path(__file__).resolve().parents[3]
    return Rehearsal(
        root=root, state=tmp_path, block=96, ports={"ngc": 1}, admin_token="", controlplane=Path("/cp"),
        aiperf=Path("/venv/bin/aiperf"), python="/venv/bin/python",
    )  # fmt: skip


def test_the_map_that_is_committed(r: Rehearsal) -> None:
    images = ImageMap(r)
    server = images.program(IMAGE)
    assert server.command == ["/venv/bin/python", "-m", "rehearsal.nim.server"] and server.processes
    assert server.path == [f"{r.root}/rehearsal/nim/bin"]
    assert any("model_manifest" in path for path in image_texts(server, IMAGE))
    assert images.program("nvcr.io/nvidia/aiperf:0.13.0").path == ["/venv/bin"]
    assert images.program("registry.example/any:1") is NOBODY


OPERATORS = ["nvcr.io/nvidia/cloud-native/k8s-nim-operator:v3.1.2", "ghcr.io/nvidia/k8s-nim-operator:main"]


@pytest.mark.parametrize("image", OPERATORS)
def test_the_operator_is_the_stand_in_or_the_program_that_was_named(r: Rehearsal, image: str) -> None:
    standin = ImageMap(r).program(image)
    launcher = Path(standin.files["/manager"])
    assert standin.command == ["/manager"] and "/manifests" not in standin.files
    assert os.access(launcher, os.X_OK) and "rehearsal.operator" in launcher.read_text()
    own = ImageMap(replace(r, operator_binary="/opt/manager", operator_manifests="/opt/manifests")).program(image)
    assert own.files == {"/manager": "/opt/manager", "/manifests": "/opt/manifests"}


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (["--health-probe-bind-address=:8081", "--leader-elect"],
         ["--health-probe-bind-address=127.97.0.2:8081", "--leader-elect"]),
        (["--metrics-bind-address=127.0.0.1:8080", "--health-probe-bind-address=0.0.0.0:9"],
         ["--metrics-bind-address=127.97.0.2:8080", "--health-probe-bind-address=127.97.0.2:9"]),
        (["-metrics-bind-address", ":8443", "--health-probe-bind-address=[::]:8081"],
         ["-metrics-bind-address", "127.97.0.2:8443", "--health-probe-bind-address=127.97.0.2:8081"]),
        # Off, or somebody's own choice.
        (["--metrics-bind-address=0", "--health-probe-bind-address=192.0.2.1:8081"],
         ["--metrics-bind-address=0", "--health-probe-bind-address=192.0.2.1:8081"]),
        # The real manager's default is every interface.
        (["--leader-elect"], ["--leader-elect", "--health-probe-bind-address=127.97.0.2:8081"]),
    ],
)  # fmt: skip
def test_the_operator_listens_on_its_pods_address(r: Rehearsal, given: list[str], made: list[str]) -> None:
    program = ImageMap(r).program(OPERATORS[1])
    assert listening(program, ["/manager", *given], "127.97.0.2") == ["/manager", *made]


def test_another_command_of_the_image_is_left_as_it_is(r: Rehearsal) -> None:
    program = ImageMap(r).program(OPERATORS[0])
    hook = ["/bin/sh", "-c", "kubectl apply -f x", "--metrics-bind-address=:8080"]
    assert listening(program, hook, "127.97.0.2") == hook
    nim = ImageMap(r).program(IMAGE)
    assert listening(nim, ["/manager", "--metrics-bind-address=:1"], "127.97.0.2")[1] == "--metrics-bind-address=:1"


@pytest.mark.parametrize(
    ("image", "container", "words"),
    [
        ("registry.example/any:1", {}, ""),
        ("registry.example/any:1", {"command": ["/run"]}, "has command"),
        ("registry.example/any:1", {"args": ["-v"], "readinessProbe": {"httpGet": {}}}, "has args, readinessProbe"),
        ("docker.io/grafana/grafana:1", {"args": ["-v"], "livenessProbe": {"httpGet": {}}}, ""),
        (IMAGE, {"readinessProbe": {"httpGet": {}}}, ""),
    ],
)
def test_whose_container_runs_as_nobody_knows_what(
    r: Rehearsal, image: str, container: dict[str, Any], words: str
) -> None:
    images = ImageMap(r)
    why = images.lacks(images.program(image), image, container)
    assert words in why and bool(words) == bool(why)
    if why:
        assert str(images.file) in why and image in why and "idle: true" in why


def test_what_is_idle_runs_nothing(r: Rehearsal) -> None:
    for image in ("docker.io/grafana/grafana:12", "gcr.io/kubebuilder/kube-rbac-proxy:v0.15.0"):
        assert not ImageMap(r).program(image).processes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "a list of entries"), ("- {command: [x]}", "entry 1 has no `image:`"),
        ("- {image: a, comand: [x]}", "unknown \\['comand'\\]"),
    ],
)  # fmt: skip
def test_a_malformed_map_is_refused(r: Rehearsal, tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "images.yaml"
    file.write_text(text)
    with pytest.raises(ImageMapError, match=words):
        ImageMap(r, file)


def test_a_bad_placeholder_is_named(r: Rehearsal, tmp_path: Path) -> None:
    file = tmp_path / "images.yaml"
    file.write_text("- {image: a, command: ['{nothing}']}")
    with pytest.raises(ImageMapError, match="bad placeholder"):
        ImageMap(r, file).program("a:1")


def pull_secret(**entry: str) -> dict[str, Any]:
    config = json.dumps({"auths": {"nvcr.io": entry}})
    return {"data": {".dockerconfigjson": base64.b64encode(config.encode()).decode()}}


def test_logins_in_both_forms() -> None:
    assert login(pull_secret(username="u", password="p")) == ("u", "p")
    assert login(pull_secret(auth=base64.b64encode(b"u:p:q").decode())) == ("u", "p:q")
    assert login({"data": {}}) is None


@dataclass
class Pulls:
    registry: Registry
    images: ImageMap
    r: Rehearsal

    async def pull(self, image: str, key: str | None = "nvapi-right") -> str:
        who = ("$oauthtoken", key) if key else None
        return await self.registry.check(image, self.images.program(image), who)


@pytest.fixture
async def pulls(r: Rehearsal) -> AsyncIterator[Pulls]:
    ngc = Ngc(r, {"nim/meta/llama-3.1-8b-instruct": ["1.3.3"]}, lambda: "nvapi-right")
    async with TestServer(ngc.application()) as server, aiohttp.ClientSession() as session:
        r.ports["ngc"] = server.port or 0
        yield Pulls(Registry(None, r, session), ImageMap(r), r)  # type: ignore[arg-type]


async def test_a_good_key_and_tag_give_a_digest(pulls: Pulls) -> None:
    assert (await pulls.pull(IMAGE)).startswith("sha256:")


@pytest.mark.parametrize("key", ["nvapi-wrong", None])
async def test_a_refused_key_is_worded_as_in_the_recordings(pulls: Pulls, key: str | None) -> None:
    with pytest.raises(PullError) as caught:
        await pulls.pull(IMAGE, key)
    assert str(caught.value) == (
        f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": failed to authorize: '
        "failed to fetch oauth token: unexpected status from GET request to https://nvcr.io/proxy_auth?"
        "scope=repository%3Anim%2Fmeta%2Fllama-3.1-8b-instruct%3Apull: 401 Unauthorized"
    )


async def test_a_tag_that_does_not_exist(pulls: Pulls) -> None:
    image = IMAGE.replace("1.3.3", "9.9")
    with pytest.raises(PullError, match=f"{image}: not found"):
        await pulls.pull(image)


@pytest.mark.parametrize(("status", "words"), [(401, "401 Unauthorized"), (404, "not found")])
async def test_an_ordered_refusal(pulls: Pulls, status: int, words: str) -> None:
    faults.order(pulls.r, "registry", image=IMAGE, status=status)
    with pytest.raises(PullError, match=words):
        await pulls.pull(IMAGE)


async def test_what_needs_no_login_or_has_no_registry_comes(pulls: Pulls) -> None:
    await pulls.pull("nvcr.io/nvidia/cloud-native/k8s-nim-operator:v3.1.2", None)
    await pulls.pull("docker.io/library/busybox:1", None)
    pulls.r.ports["ngc"] = 1
    await pulls.pull(IMAGE)
