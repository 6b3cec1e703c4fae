"""Environment of containers: who wins, and what a proxy adds."""

from __future__ import annotations

from rehearsal.operator.api import Obj


def merge(user: list[Obj], operators: list[Obj]) -> list[Obj]:
    """The user's variables first, then the operator's that the user has not set."""
    taken = {entry["name"] for entry in user}
    return [*user, *(entry for entry in operators if entry["name"] not in taken)]


def from_secret(name: str, secret: str, key: str) -> Obj:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def proxy(spec: Obj | None) -> list[Obj]:
    """Proxy variables in both spellings, as different HTTP libraries read different ones."""
    if not spec:
        return []
    values = {"HTTP_PROXY": "httpProxy", "HTTPS_PROXY": "httpsProxy", "NO_PROXY": "noProxy"}
    entries = []
    for variable, field in values.items():
        for name in (variable, variable.lower()):
            entries.append({"name": name, "value": spec.get(field, "")})
    return [{"name": "NIM_SDK_USE_NATIVE_TLS", "value": "1"}, *entries]
