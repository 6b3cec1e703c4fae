"""A pod's volumes as folders of this machine.

Everything lies below ``<state>/pods/<uid>/volumes/<volume>``, but for claims (``<state>/volumes/<PersistentVolume>``,
whose folders the storage stand-in owns) and hostPath, which never leaves the state folder
(``<state>/hostpath/<node>/<path>``). An emptyDir of medium Memory is a plain folder too: it must survive the restart of
a container; its size is not limited.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import posixpath
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rehearsal.config import Rehearsal
from rehearsal.kube import ApiError, Kube, NotFound, Obj, path_of
from rehearsal.runner import environment
from rehearsal.runner.environment import ConfigError


class MountError(Exception):
    """A volume is not there yet; the message is worded as the kubelet's FailedMount event."""


class Volumes:
    """The volumes of one pod. `prepare` makes them, `refresh` brings their contents up to date."""

    def __init__(self, kube: Kube, r: Rehearsal, pod: Obj, folder: Path, addresses: Mapping[str, str], node: Obj):
        self._kube, self._r, self._pod, self._addresses, self._node = kube, r, pod, addresses, node
        self._folder = folder / "volumes"
        self._paths: dict[str, Path] = {}

    async def prepare(self) -> None:
        """Make every volume. Raises MountError for the first that cannot be mounted."""
        for volume in self._pod["spec"].get("volumes", []):
            self._paths[volume["name"]] = await self._make(volume)

    async def refresh(self, pod: Obj) -> None:
        """Write changed Secrets, ConfigMaps, labels, and tokens close to their end; what is gone stays."""
        self._pod = pod
        for volume in pod["spec"].get("volumes", []):
            if volume["name"] in self._paths and volume.keys() & {"configMap", "secret", "projected", "downwardAPI"}:
                with contextlib.suppress(MountError):
                    await self._make(volume)

    def binds(self, container: Obj, env: Mapping[str, str]) -> list[dict[str, Any]]:
        """The bind mounts of one container, as `sandbox` wants them. Raises ConfigError for a sub path that is none."""
        result = []
        for each in container.get("volumeMounts", []):
            source = self._paths[each["name"]]
            below = each.get("subPath") or environment.expand(each.get("subPathExpr", ""), env)
            if below:
                if posixpath.isabs(below) or ".." in below.split("/"):
                    raise ConfigError(f'failed to prepare subPath for volumeMount "{each["name"]}" of container')
                source = source / below
                if not source.exists():
                    source.mkdir(parents=True)
            read_only = bool(each.get("readOnly"))
            result.append({"source": str(source), "target": each["mountPath"], "read_only": read_only})
        return result

    async def _make(self, volume: Obj) -> Path:
        name = volume["name"]
        folder: Path = self._folder / str(name)
        if "persistentVolumeClaim" in volume:
            return await self._claim(volume, volume["persistentVolumeClaim"]["claimName"])
        if "ephemeral" in volume:
            # The controller-manager makes the claim, under this name.
            return await self._claim(volume, f"{self._pod['metadata']['name']}-{name}")
        if "hostPath" in volume:
            node = self._pod["spec"]["nodeName"]
            folder = self._r.path("hostpath") / str(node) / posixpath.normpath(volume["hostPath"]["path"]).lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        if "configMap" in volume:
            await self._entries(volume, folder, "ConfigMap", volume["configMap"], volume["configMap"].get("name"))
        elif "secret" in volume:
            await self._entries(volume, folder, "Secret", volume["secret"], volume["secret"].get("secretName"))
        elif "downwardAPI" in volume:
            self._downward(folder, volume["downwardAPI"])
        elif "projected" in volume:
            for source in volume["projected"].get("sources", []):
                await self._project(volume, folder, source)
        elif not volume.keys() & {"emptyDir", "hostPath"}:
            kind = next(iter(volume.keys() - {"name"}), "none")
            raise MountError(f'MountVolume.SetUp failed for volume "{name}" : volume type {kind} is not supported here')
        return folder

    async def _project(self, volume: Obj, folder: Path, source: Obj) -> None:
        if "serviceAccountToken" in source:
            await self._token(volume, folder, source["serviceAccountToken"])
        elif "configMap" in source:
            await self._entries(volume, folder, "ConfigMap", source["configMap"], source["configMap"].get("name"))
        elif "secret" in source:
            await self._entries(volume, folder, "Secret", source["secret"], source["secret"].get("name"))
        elif "downwardAPI" in source:
            self._downward(folder, source["downwardAPI"])

    async def _claim(self, volume: Obj, claim_name: str) -> Path:
        namespace = self._pod["metadata"]["namespace"]
        prefix = (
            f"Unable to attach or mount volumes: unmounted volumes=[{volume['name']}], unattached volumes=[], "
            f"failed to process volumes=[{volume['name']}]: error processing PVC {namespace}/{claim_name}: "
        )
        try:
            claim = await self._kube.get(path_of("v1", "PersistentVolumeClaim", namespace, claim_name))
        except NotFound:
            raise MountError(
                prefix + f'failed to fetch PVC from API server: persistentvolumeclaims "{claim_name}" not found'
            ) from None
        name = claim["spec"].get("volumeName")
        if not name or claim.get("status", {}).get("phase") != "Bound":
            raise MountError(prefix + "PVC is not bound")
        try:
            await self._kube.get(path_of("v1", "PersistentVolume", None, name))
        except NotFound:
            raise MountError(prefix + f'persistentvolumes "{name}" not found') from None
        folder = self._r.path("volumes") / str(name)
        folder.mkdir(exist_ok=True)
        return folder

    async def _entries(self, volume: Obj, folder: Path, kind: str, choice: Obj, name: str | None) -> None:
        namespace = self._pod["metadata"]["namespace"]
        failed = f'MountVolume.SetUp failed for volume "{volume["name"]}" : '
        try:
            obj = await self._kube.get(path_of("v1", kind, namespace, name))
        except NotFound:
            if choice.get("optional"):
                return
            raise MountError(failed + f'{kind.lower()} "{name}" not found') from None
        entries = environment.contents(kind, obj)
        items = choice.get("items")
        mode = choice.get("defaultMode", 0o644)
        if items is None:
            for key, value in entries.items():
                _write(folder / key, value, mode)
            return
        for item in items:
            if item["key"] not in entries:
                if choice.get("optional"):
                    continue
                raise MountError(failed + f"references non-existent {kind.lower()} key: {item['key']}")
            _write(folder / item["path"], entries[item["key"]], item.get("mode", mode))

    def _downward(self, folder: Path, choice: Obj) -> None:
        containers = self._pod["spec"]["containers"]
        for item in choice.get("items", []):
            if "fieldRef" in item:
                text = environment.field(self._pod, item["fieldRef"]["fieldPath"], self._addresses)
            else:
                text = environment.resource(self._pod, containers[0], item["resourceFieldRef"], self._node)
            _write(folder / item["path"], text.encode(), item.get("mode", choice.get("defaultMode", 0o644)))

    async def _token(self, volume: Obj, folder: Path, choice: Obj) -> None:
        target = folder / choice["path"]
        life = choice.get("expirationSeconds", 3600)
        if target.exists() and not _nearly_over(target.read_text()):
            return
        meta, account = self._pod["metadata"], self._pod["spec"].get("serviceAccountName", "default")
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "expirationSeconds": life,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]},
            }
            | ({"audiences": [choice["audience"]]} if choice.get("audience") else {}),
        }
        try:
            answer = await self._kube.create(
                path_of("v1", "ServiceAccount", meta["namespace"], account, "token"), request
            )
        except ApiError as error:
            raise MountError(
                f'MountVolume.SetUp failed for volume "{volume["name"]}" : failed to fetch token: {error.message}'
            ) from None
        _write(target, answer["status"]["token"].encode(), 0o600)


def _nearly_over(token: str) -> bool:
    """Whether four fifths of a token's life have passed, when a kubelet renews it. What cannot be read is renewed."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return bool(time.time() > claims["iat"] + 0.8 * (claims["exp"] - claims["iat"]))
    except (ValueError, KeyError, IndexError):
        return True


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replace a file if it differs, so that a reader in the pod sees the old contents or the new."""
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"..{path.name}.new")
    with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)
    # Readable by us whatever the spec says: user ids are not honoured, so the owner is the reader.
    os.chmod(temporary, mode | 0o400)
    os.replace(temporary, path)
