"""Image pulls: what containerd would ask the registry, asked of the NGC stand-in, refused in containerd's words."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from http import HTTPStatus
from urllib.parse import urlencode

import aiohttp

from rehearsal import faults
from rehearsal.config import Rehearsal
from rehearsal.faults import split_image
from rehearsal.kube import Kube, NotFound, Obj, path_of
from rehearsal.runner.images import Program

log = logging.getLogger(__name__)

HOST = "nvcr.io"
Credentials = tuple[str, str]


class PullError(Exception):
    """The registry refused; the message is containerd's."""


class Registry:
    """Decides whether an image can be pulled. Images of registries other than nvcr.io always can."""

    def __init__(self, kube: Kube, r: Rehearsal, session: aiohttp.ClientSession):
        self._kube, self._r, self._session = kube, r, session

    async def credentials(self, pod: Obj) -> tuple[Credentials | None, list[str]]:
        """The login for nvcr.io from the pod's pull secrets, and the names of those that do not exist."""
        namespace = pod["metadata"]["namespace"]
        missing: list[str] = []
        for reference in pod["spec"].get("imagePullSecrets", []):
            try:
                secret = await self._kube.get(path_of("v1", "Secret", namespace, reference["name"]))
            except NotFound:
                missing.append(reference["name"])
                continue
            found = login(secret)
            if found:
                return found, missing
        return None, missing

    async def check(self, image: str, program: Program, login: Credentials | None) -> str:
        """The image's digest as far as the registry told it, else one made up. Raises PullError for a refusal."""
        invented = "sha256:" + hashlib.sha256(image.encode()).hexdigest()
        refused = faults.refused_image(self._r, image)
        repository, tag = split_image(image)
        host, _, name = repository.partition("/")
        if refused is not None:
            raise refusal(image, refused)
        if host != HOST or (program.anonymous and login is None):
            return invented
        try:
            return await self._ask(image, name, tag or "latest", login)
        except (aiohttp.ClientConnectionError, TimeoutError):
            log.warning("the registry's stand-in does not answer: %s counts as pulled", image)
            return invented

    async def _ask(self, image: str, name: str, tag: str, login: Credentials | None) -> str:
        base = self._r.url("ngc")
        limit = aiohttp.ClientTimeout(total=10)
        query = {"scope": f"repository:{name}:pull"} | ({"account": login[0]} if login else {})
        auth = aiohttp.BasicAuth(*login) if login else None
        async with self._session.get(f"{base}/proxy_auth?{urlencode(query)}", auth=auth, timeout=limit) as answer:
            if answer.status != 200:
                raise PullError(words(image, HOST, name, tag, answer.status, token=True))
            token = (await answer.json())["token"]
        headers = {"Authorization": f"Bearer {token}"}
        async with self._session.head(f"{base}/v2/{name}/manifests/{tag}", headers=headers, timeout=limit) as answer:
            if answer.status != 200:
                raise PullError(words(image, HOST, name, tag, answer.status, token=False))
            return str(answer.headers["Docker-Content-Digest"])


def login(secret: Obj, host: str = HOST) -> Credentials | None:
    """User and password for a registry from a kubernetes.io/dockerconfigjson Secret; None when it holds none."""
    try:
        config = json.loads(base64.b64decode(secret["data"][".dockerconfigjson"]))
        entry = config["auths"][host]
        if "auth" in entry:
            user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        else:
            user, password = entry["username"], entry["password"]
    except (KeyError, ValueError, TypeError):
        return None
    return user, password


def refusal(image: str, status: int) -> PullError:
    """The registry's refusal with this HTTP status; what a key may not do (401 to 403) the token endpoint tells."""
    repository, tag = split_image(image)
    host, _, name = repository.partition("/")
    return PullError(words(image, host, name, tag or "latest", status, token=status in (401, 402, 403)))


def words(image: str, host: str, name: str, tag: str, status: int, *, token: bool) -> str:
    """containerd's message for a refusal by the token endpoint (`token`) or by the manifest's."""
    reference = image if tag in image else f"{image}:{tag}"
    resolve = f'failed to pull and unpack image "{reference}": failed to resolve reference "{reference}": '
    try:
        phrase = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    if token:
        url = f"https://{host}/proxy_auth?{urlencode({'scope': f'repository:{name}:pull'})}"
        url = url.replace("+", "%20")
        refused = f"failed to fetch oauth token: unexpected status from GET request to {url}: {phrase}"
        return f"{resolve}failed to authorize: {refused}"
    if status == 404:
        return resolve + f"{reference}: not found"
    url = f"https://{host}/v2/{name}/manifests/{tag}"
    return resolve + f"unexpected status from HEAD request to {url}: {phrase}"
