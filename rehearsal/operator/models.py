"""Asking a service's pods which model they serve."""

from __future__ import annotations

import json

import aiohttp

TIMEOUT_S = 30.0
"""A hanging endpoint holds up the one worker, and with it all NIMServices, this long."""


class EndpointSilent(Exception):
    """Refused, timed out, an error status or no JSON: the service's status is then not written at all."""


async def model_name(session: aiohttp.ClientSession, address: str) -> str:
    """The model at `address` (host:port); "" when none can be told. Raises EndpointSilent."""
    status, body = await _get(session, f"http://{address}/v1/models")
    if status == 404:
        status, body = await _get(session, f"http://{address}/v1/metadata")
        if status == 404:
            return ""
        _expect_ok(status, address)
        return str(_json(body).get("modelInfo", [{}])[0].get("shortName", ""))
    _expect_ok(status, address)
    entries = _json(body).get("data") or []
    if len(entries) == 1:
        return str(entries[0].get("id", ""))
    # Of several (LoRA adapters next to their base) the base is its own root.
    return next((str(entry["id"]) for entry in entries if entry.get("root") == entry.get("id")), "")


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[int, str]:
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as answer:
            return answer.status, await answer.text()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise EndpointSilent(f"{url}: {error or type(error).__name__}") from error


def _expect_ok(status: int, address: str) -> None:
    if status != 200:
        raise EndpointSilent(f"{address} answered {status}")


def _json(body: str) -> dict[str, list[dict[str, str]]]:
    try:
        data = json.loads(body)
    except ValueError as error:
        raise EndpointSilent(f"no JSON: {error}") from error
    if not isinstance(data, dict):
        raise EndpointSilent("the answer is not an object")
    return data
