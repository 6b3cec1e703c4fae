"""What the words of registries, clouds, kubelets and model servers say about the layer at fault.

The order counts: what is more telling stands first. Wordings: containerd and the kubelet (pulls, mounts), Karpenter
and EC2 (capacity, quotas), the NIM container (profiles, CUDA memory), as vendors' documents and issues quote them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from nim_rollouts.core.layers import Layer

_NETWORK = (
    r"no such host|i/o timeout|connection refused|connection reset|network is unreachable|no route to host"
    r"|TLS handshake timeout|context deadline exceeded|temporary failure in name resolution|name or service not known"
    r"|connection timed out|x509:"
)

_PULL: tuple[tuple[str, Layer], ...] = (
    (r"\b429\b|toomanyrequests|too many requests|rate limit", Layer.RATE_LIMIT),
    (r"\b402\b|payment required", Layer.ENTITLEMENT),
    (r"\b403\b|forbidden|insufficient_scope|access denied|authorization failed|\bdenied\b", Layer.ENTITLEMENT),
    (r"\b401\b|unauthorized|authentication required|no basic auth credentials", Layer.NGC_AUTH),
    (_NETWORK, Layer.NETWORK),
)
_NODES: tuple[tuple[str, Layer], ...] = (
    (r"VcpuLimitExceeded|MaxSpotInstanceCountExceeded|vCPU limit|InstanceLimitExceeded|exceeded quota", Layer.QUOTA),
    (r"Insufficient\w*Capacity|insufficient capacity|sufficient \S+ capacity|UnfulfillableCapacity", Layer.CAPACITY),
    (r"required offering|all available instance types exceed limits", Layer.CAPACITY),
    # Others than "no instance type has the required offering" tell of resources or labels that no type has.
    (r"no instance type", Layer.SCHEDULING),
)
_LOG: tuple[tuple[str, Layer], ...] = (
    (r"CUDA out of memory|CUDA error: out of memory|OutOfMemoryError|OOMKilled|Cannot allocate memory", Layer.MEMORY),
    (r"no (valid|compatible|matching|suitable) profile|profile\S* .*not (found|supported|compatible)", Layer.PROFILE),
    (r"No space left on device|Disk quota exceeded|Read-only file system|Stale file handle", Layer.VOLUME),
    (r"Permission denied|Operation not permitted|chown", Layer.VOLUME),
    *_PULL[:4],
    (_NETWORK, Layer.NETWORK),
)


def of_pull(text: str) -> Layer | None:
    """What a registry's refusal says (without the image's own name)."""
    return _first(_PULL, [text])


def of_nodes(texts: Iterable[str]) -> Layer | None:
    """What a provisioner of nodes says about pods that fit nowhere."""
    return _first(_NODES, list(texts))


def of_log(lines: Iterable[str]) -> tuple[Layer, str] | None:
    """What a container's last lines say, and the line that says it; the last of them first."""
    for line in reversed(list(lines)):
        layer = _first(_LOG, [line])
        if layer is not None:
            return layer, line
    return None


def _first(table: tuple[tuple[str, Layer], ...], texts: list[str]) -> Layer | None:
    for pattern, layer in table:
        if any(re.search(pattern, text, re.IGNORECASE) for text in texts):
            return layer
    return None
