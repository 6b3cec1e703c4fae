"""What must be in a new control plane before its parts start: KWOK's CRDs, with which pods' logs, port-forwards and
execs are published."""

from __future__ import annotations

import asyncio
import subprocess

import yaml

from rehearsal.config import Rehearsal, load
from rehearsal.kube import Kube, Obj, path


async def apply(r: Rehearsal, crds: list[Obj]) -> None:
    async with Kube.from_rehearsal(r) as kube:
        for crd in crds:
            await kube.patch(path(crd), crd, kind="apply", field_manager="rehearsal", force=True)
        for crd in crds:
            while not _established(await kube.get(path(crd))):
                await asyncio.sleep(0.1)


def _established(crd: Obj) -> bool:
    # A CRD applied with an empty status has `conditions: null` until the API server fills them in.
    conditions = crd.get("status", {}).get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


def main() -> None:
    r = load()
    printed = subprocess.run([r.controlplane, "kwok-crds"], check=True, capture_output=True, text=True).stdout
    asyncio.run(apply(r, [document for document in yaml.safe_load_all(printed) if document]))


if __name__ == "__main__":
    main()
