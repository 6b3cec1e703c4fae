"""What ordered faults do to pods: whom they meet, and what then happens. Nothing else of the runner knows them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from rehearsal import faults
from rehearsal.nim import image

if TYPE_CHECKING:
    from rehearsal.runner.containers import Container
    from rehearsal.runner.process import Process

log = logging.getLogger(__name__)

NIM_IMAGES = "nvcr.io/nim/"
OPERATOR_IMAGES = "/k8s-nim-operator"
LOOK_S = 0.5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 300.0
"""A kubelet's pauses between starts of a container that keeps ending."""


def crash(container: Container) -> dict[str, Any] | None:
    """The settings of `crash-loop` when it meets this run: a NIM server, not a pod of a cache."""
    server = container.image.startswith(NIM_IMAGES) and not container.spec.get("command") and not container.worker.job
    return faults.get(container.worker.kubelet.r, "crash-loop") if server else None


def command(container: Container, argv: list[str]) -> list[str]:
    """The command, or one that fails, when `cache-job-fails` meets this pod of a download Job."""
    worker = container.worker
    if not worker.job or not container.image.startswith(NIM_IMAGES) or container.state.init:
        return argv
    fault = faults.get(worker.kubelet.r, "cache-job-fails")
    if fault is None or not worker.kubelet.may_fail(worker.job, worker.uid, int(fault["pods"])):
        return argv
    return ["sh", "-c", "echo 'Error: download of the profile broke off: connection reset by peer' >&2; exit 1"]


def pull_refusal(container: Container) -> int | None:
    """The HTTP status with which `pull-refused` refuses this container's image now."""
    if not container.image.startswith(NIM_IMAGES):
        return None
    fault = faults.get(container.worker.kubelet.r, "pull-refused")
    if fault is None:
        return None
    owners = container.worker.pod["metadata"].get("ownerReferences") or [{}]
    whose = "service" if owners[0].get("kind") == "ReplicaSet" else "cache"
    return int(fault["status"]) if fault["pods"] in ("any", whose) else None


def files(container: Container, texts: dict[str, str]) -> dict[str, str]:
    """The image's own files, its profiles changed by `no-profile`."""
    fault = faults.get(container.worker.kubelet.r, "no-profile") if container.image.startswith(NIM_IMAGES) else None
    if fault is None or image.MANIFEST_PATH not in texts:
        return texts
    return texts | {image.MANIFEST_PATH: image.for_gpu(texts[image.MANIFEST_PATH], fault["gpu"])}


def _is_operator(container: Container) -> bool:
    return faults.split_image(container.image)[0].endswith(OPERATOR_IMAGES)


def _away(container: Container) -> bool:
    if not _is_operator(container):
        return False
    return faults.get(container.worker.kubelet.r, "operator-away") is not None


async def held(container: Container) -> None:
    """Return when the container may start: not while `operator-away` meets it. Meanwhile it looks as if each start
    that a kubelet tries after 10, 20, 40 s.. failed at once, so that the restarts count up."""
    told, loop = False, asyncio.get_running_loop()
    pause, due = FIRST_PAUSE_S, loop.time() + FIRST_PAUSE_S
    while _away(container):
        if container.state.last_state and loop.time() >= due:
            container.state.restart_count += 1
            pause = min(2 * pause, LONGEST_PAUSE_S)
            due = loop.time() + pause
            container.worker.touch()
        if not told:
            meta = container.worker.pod["metadata"]
            pod = f"{meta['name']}_{meta['namespace']}({meta['uid']})"
            if container.state.last_state:
                container.event("Warning", "BackOff", f"Back-off restarting failed container {container.name}")
                words = f"back-off 5m0s restarting failed container={container.name} pod={pod}"
                container.wait_for("CrashLoopBackOff", words)
            else:
                container.wait_for("CreateContainerError", "context deadline exceeded")
            log.info("%s/%s is held down", container.worker.title, container.name)
            told = True
        await asyncio.sleep(LOOK_S)


async def end_when_away(container: Container, process: Process) -> None:
    """Kill the process as soon as `operator-away` is ordered; for other containers nothing."""
    if _is_operator(container):
        while not _away(container):
            await asyncio.sleep(LOOK_S)
        process.kill()
