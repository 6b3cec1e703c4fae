"""The NGC stand-in, asked over HTTP: token exchange, manifests, refusals, the registry fault, silence on secrets."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from rehearsal import faults, ngc
from rehearsal.config import ROOT

KEY = "nvapi-" + "k" * 64
REPOSITORY = "nim/org/model"


class State:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def client(state: State, clock: Clock) -> AsyncIterator[TestClient]:
    stand_in = ngc.Ngc(state, {REPOSITORY: ["1.0", "1.1"]}, lambda: KEY, clock)  # type: ignore[arg-type]
    app = stand_in.application()
    app.middlewares.append(ngc.log_requests)
    async with TestClient(TestServer(app)) as client:
        yield client


async def token(client: TestClient, repository: str = REPOSITORY, key: str = KEY) -> tuple[int, dict]:
    auth = aiohttp.encode_basic_auth("$oauthtoken", key) if hasattr(aiohttp, "encode_basic_auth") else None
    headers = {"Authorization": auth} if auth else {}
    basic = None if auth else aiohttp.BasicAuth("$oauthtoken", key)
    query = {"account": "$oauthtoken", "scope": f"repository:{repository}:pull"}
    answer = await client.get("/proxy_auth", params=query, auth=basic, headers=headers)
    return answer.status, await answer.json()


async def bearer(client: TestClient, repository: str = REPOSITORY) -> dict[str, str]:
    status, body = await token(client, repository)
    assert status == 200
    return {"Authorization": f"Bearer {body['token']}"}


async def test_a_registry_client_is_led_to_the_exchange(client: TestClient) -> None:
    answer = await client.get("/v2/")
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == f'Bearer realm="{client.make_url("/proxy_auth")}"'
    answer = await client.head(f"/v2/{REPOSITORY}/manifests/1.0")
    assert answer.status == 401
    assert f'scope="repository:{REPOSITORY}:pull"' in answer.headers["WWW-Authenticate"]
    answer = await client.get("/v2/", headers=await bearer(client))
    assert answer.status == 200


async def test_manifests_of_known_tags(client: TestClient) -> None:
    headers = await bearer(client)
    head = await client.head(f"/v2/{REPOSITORY}/manifests/1.0", headers=headers)
    got = await client.get(f"/v2/{REPOSITORY}/manifests/1.0", headers=headers)
    body = await got.read()
    assert (head.status, got.status) == (200, 200)
    digest = head.headers["Docker-Content-Digest"]
    assert digest == got.headers["Docker-Content-Digest"] == ngc.digest_of(body)
    by_digest = await client.get(f"/v2/{REPOSITORY}/manifests/{digest}", headers=headers)
    assert await by_digest.read() == body
    other = await client.head(f"/v2/{REPOSITORY}/manifests/1.1", headers=headers)
    assert other.headers["Docker-Content-Digest"] != digest
    tags = await client.get(f"/v2/{REPOSITORY}/tags/list", headers=headers)
    assert (await tags.json())["tags"] == ["1.0", "1.1"]


async def test_what_is_not_there_is_404(client: TestClient) -> None:
    answer = await client.get(f"/v2/{REPOSITORY}/manifests/2.0", headers=await bearer(client))
    assert (answer.status, (await answer.json())["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")
    answer = await client.get("/v2/no/such/manifests/1.0", headers=await bearer(client, "no/such"))
    assert (answer.status, (await answer.json())["errors"][0]["code"]) == (404, "NAME_UNKNOWN")


@pytest.mark.parametrize("key", ["nvapi-wrong", "", KEY + "x"])
async def test_a_wrong_key_gets_no_token(client: TestClient, key: str) -> None:
    status, body = await token(client, key=key)
    assert (status, body["errors"][0]["code"]) == (401, "UNAUTHORIZED")


async def test_a_malformed_authorization_is_refused(client: TestClient) -> None:
    for value in ("Basic %%%", "Basic " + "A" * 5, "Bearer x", "Basic"):
        answer = await client.get("/proxy_auth", headers={"Authorization": value})
        assert answer.status == 401


async def test_a_token_opens_its_repository_alone_and_ends(client: TestClient, clock: Clock) -> None:
    headers = await bearer(client, "other/repository")
    answer = await client.head(f"/v2/{REPOSITORY}/manifests/1.0", headers=headers)
    assert answer.status == 401
    assert "insufficient_scope" in answer.headers["WWW-Authenticate"]
    headers = await bearer(client)
    clock.now += ngc.TOKEN_SECONDS + 1
    assert (await client.head(f"/v2/{REPOSITORY}/manifests/1.0", headers=headers)).status == 401


async def test_registry_fault(client: TestClient, state: State) -> None:
    headers = await bearer(client)
    faults.order(state, "registry", image=f"nvcr.io/{REPOSITORY}:1.0", status=404)
    assert (await client.head(f"/v2/{REPOSITORY}/manifests/1.0", headers=headers)).status == 404
    assert (await client.head(f"/v2/{REPOSITORY}/manifests/1.1", headers=headers)).status == 200
    faults.order(state, "registry", image=f"nvcr.io/{REPOSITORY}:1.0", status=401)
    assert (await client.head(f"/v2/{REPOSITORY}/manifests/1.0", headers=headers)).status == 401
    faults.order(state, "registry", image=f"nvcr.io/{REPOSITORY}", status=401)
    assert (await token(client))[0] == 401
    faults.clear(state)
    assert (await client.head(f"/v2/{REPOSITORY}/manifests/1.0", headers=headers)).status == 200


@pytest.mark.parametrize("status", [402, 403])
async def test_what_the_key_may_not_do_shows_at_the_token(client: TestClient, state: State, status: int) -> None:
    headers = await bearer(client)
    faults.order(state, "registry", image=f"nvcr.io/{REPOSITORY}", status=status)
    assert (await token(client))[0] == status
    assert (await client.head(f"/v2/{REPOSITORY}/manifests/1.0", headers=headers)).status == status


async def test_a_rate_limit_says_how_long(client: TestClient, state: State) -> None:
    headers = await bearer(client)
    faults.order(state, "registry", image=f"nvcr.io/{REPOSITORY}", status=429, retry_after_s=3)
    assert (await token(client))[0] == 200
    answer = await client.head(f"/v2/{REPOSITORY}/manifests/1.0", headers=headers)
    assert (answer.status, answer.headers["Retry-After"]) == (429, "3")
    faults.order(state, "registry", image=f"nvcr.io/{REPOSITORY}", status=429, retry_after_s=0)
    answer = await client.head(f"/v2/{REPOSITORY}/manifests/1.0", headers=headers)
    assert "Retry-After" not in answer.headers


async def test_no_key_and_no_token_in_the_log(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        headers = await bearer(client)
        await client.head(f"/v2/{REPOSITORY}/manifests/1.0", headers=headers)
    said = caplog.text
    assert "/proxy_auth 200" in said
    assert KEY not in said and headers["Authorization"].split()[1] not in said


def test_the_committed_registry_reads() -> None:
    registry = ngc.load_registry(ROOT / "rehearsal" / "registry.yaml")
    assert all(tag == str(tag) and tags for tags in registry.values() for tag in tags)


def test_a_registry_entry_without_tags_is_named(tmp_path: Path) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text("a/b: 1.0\n")
    with pytest.raises(ValueError, match="a/b needs a list"):
        ngc.load_registry(file)
