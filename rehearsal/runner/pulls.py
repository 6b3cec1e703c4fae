"""An image's way to the node: events, waiting states and back-off as a kubelet shows them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import aiohttp

from rehearsal.faults import split_image
from rehearsal.kube import ApiError
from rehearsal.runner import disorder
from rehearsal.runner.registry import PullError, refusal

if TYPE_CHECKING:
    from rehearsal.runner.containers import Container

log = logging.getLogger(__name__)

UNREACHABLE = (aiohttp.ClientError, ApiError, TimeoutError, OSError)
"""What a request to the API server may fail with for a while."""


class Backoff:
    """Ten seconds, doubling to five minutes. `free` gives the first repetition at once, as a crashed container's is."""

    FIRST, LONGEST, RESET = 10.0, 300.0, 600.0

    def __init__(self, *, free: bool):
        self._free = free
        self._start()

    def _start(self) -> None:
        self._next = 0.0 if self._free else self.FIRST

    def next(self, ran: float = 0.0) -> float:
        """Seconds to wait now. A run of ten minutes or more (`ran`, in seconds) starts anew."""
        if ran >= self.RESET:
            self._start()
        delay = self._next
        self._next = min(delay * 2, self.LONGEST) if delay else self.FIRST
        return delay


async def pull(container: Container, backoff: Backoff) -> None:
    """Until the image is there; a refusal is tried again with back-off. Key in `timing.json`: `image_pull` (s)."""
    kubelet, pod = container.worker.kubelet, container.worker.pod
    present = kubelet.present.setdefault(pod["spec"]["nodeName"], {})
    tagged = ":" in container.image.rpartition("/")[2] and not container.image.endswith(":latest")
    policy = container.spec.get("imagePullPolicy") or ("IfNotPresent" if tagged else "Always")
    # An image that the fault refuses counts as one that the node has thrown away meanwhile.
    if container.image in present and policy != "Always" and disorder.pull_refusal(container) is None:
        words = f'Container image "{container.image}" already present on machine and can be accessed by the pod'
        container.event("Normal", "Pulled", words)
        container.state.image_id = present[container.image]
        return
    loop = asyncio.get_running_loop()
    while True:
        container.event("Normal", "Pulling", f'Pulling image "{container.image}"')
        began = loop.time()
        login, missing = await _credentials(container)
        if missing:
            container.worker.event(
                "Warning", "FailedToRetrieveImagePullSecret",
                f"Unable to retrieve some image pull secrets ({', '.join(missing)}); "
                "attempting to pull the image may not succeed.",
            )  # fmt: skip
        try:
            if (status := disorder.pull_refusal(container)) is not None:
                raise refusal(container.image, status)
            digest = await kubelet.registry.check(container.image, container.program, login)
        except PullError as error:
            await _failed(container, str(error), backoff)
            continue
        await asyncio.sleep(kubelet.r.timing("image_pull", 0.5))
        took = f"{loop.time() - began:.2f}s"
        size = f" Image size: {container.program.size} bytes." if container.program.size else ""
        words = f'Successfully pulled image "{container.image}" in {took} ({took} including waiting).{size}'
        container.event("Normal", "Pulled", words)
        container.state.image_id = present[container.image] = f"{split_image(container.image)[0]}@{digest}"
        return


async def _credentials(container: Container) -> tuple[tuple[str, str] | None, list[str]]:
    while True:
        try:
            return await container.worker.kubelet.registry.credentials(container.worker.pod)
        except UNREACHABLE as error:
            log.warning("%s: pull secrets not read yet: %s", container.worker.title, error)
            await asyncio.sleep(1)


async def _failed(container: Container, words: str, backoff: Backoff) -> None:
    container.wait_for("ErrImagePull", words)
    container.event("Warning", "Failed", f'Failed to pull image "{container.image}": {words}')
    container.event("Warning", "Failed", "Error: ErrImagePull")
    delay = backoff.next()
    # The kubelet's next look at the pod, some seconds later, finds it in back-off.
    await asyncio.sleep(2)
    waiting = f'Back-off pulling image "{container.image}"'
    container.event("Normal", "BackOff", waiting)
    container.event("Warning", "Failed", "Error: ImagePullBackOff")
    container.wait_for("ImagePullBackOff", f"{waiting}: ErrImagePull: {words}")
    await asyncio.sleep(delay - 2)
