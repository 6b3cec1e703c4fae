"""The error tree: what went wrong, in which layer, whether a retry helps, and what to do about it.

Three branches decide what Airflow does with a failed task (see `is_retryable`):

* `TransientError`   the same call may succeed later; retry, not sooner than `retry_after_s`.
* `NeedsHumanError`  somebody must grant, approve or repair something first; retries would only burn time.
* `PermanentError`   the request itself cannot work, or its answer is final; stop now.

Every concrete class names its layer and its reason slug. A slug is stable: alerts and the ledger refer to it.
No message, hint or traceback may hold a secret; `redact` is the last net before a text leaves the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nim_rollouts.core.errorbase import NeedsHumanError as NeedsHumanError
from nim_rollouts.core.errorbase import NimRolloutsError as NimRolloutsError
from nim_rollouts.core.errorbase import PermanentError as PermanentError
from nim_rollouts.core.errorbase import TransientError as TransientError
from nim_rollouts.core.errorbase import redact as redact
from nim_rollouts.core.teardownerrors import EnvironmentProtected as EnvironmentProtected
from nim_rollouts.core.teardownerrors import InventoryUnknown as InventoryUnknown
from nim_rollouts.core.teardownerrors import LeftoversFound as LeftoversFound
from nim_rollouts.core.teardownerrors import NotConfirmed as NotConfirmed
from nim_rollouts.core.waiterrors import WaitFailed as WaitFailed
from nim_rollouts.core.waiterrors import WaitStuck as WaitStuck

# --- what was asked for -------------------------------------------------------------------------------------------


class SpecError(PermanentError):
    """A deployment, environment or form value that cannot be accepted. `problems`: one text per finding."""

    default_reason, default_layer = "spec-invalid", "spec"
    default_hint = "Correct the file and trigger the run again"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        reason: str | None = None,
        layer: str | None = None,
        problems: list[str] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, reason=reason, layer=layer)
        self.problems = [redact(problem) for problem in problems or [message]]


class UnknownDeployment(SpecError):
    """No file in include/deployments has that name."""

    default_reason = "deployment-unknown"


class UnknownEnvironment(SpecError):
    """No file in include/environments has that name."""

    default_reason = "environment-unknown"


class ManifestError(PermanentError):
    """A file of include/manifests does not have the shape that the code fills in."""

    default_reason, default_layer = "manifest-invalid", "manifests"
    default_hint = "Restore the file from the repository"


class GpuFit(SpecError):
    """No instance type that the environment allows can hold the requested resources."""

    default_reason, default_layer = "gpu-fit", "capacity"
    default_hint = "Lower service.resources, or allow a larger instance type in the environment"


class QuotaTooSmall(NeedsHumanError):
    """The account's quota of vCPUs leaves no room for the nodes that the deployment needs."""

    default_reason, default_layer = "vcpu-quota", "quota"
    default_hint = "Ask AWS for a larger quota"


class ToolMissing(PermanentError):
    """A command line tool is not where it should be."""

    default_reason, default_layer = "tool-missing", "worker"


# --- NGC ----------------------------------------------------------------------------------------------------------


class NgcKeyError(PermanentError):
    """The NGC key is missing, malformed or refused."""

    default_reason, default_layer = "ngc-key-invalid", "ngc"
    default_hint = "Put a valid NGC personal key (nvapi-...) into the password of the environment's NGC connection"


class NgcEntitlementError(NeedsHumanError):
    """NGC knows the key, but it may not pull this image (402)."""

    default_reason, default_layer = "ngc-not-entitled", "entitlement"
    default_hint = "Accept the model's licence or subscribe to NVIDIA AI Enterprise with the key's organisation"


class NgcForbidden(NgcKeyError):
    """NGC knows the key, but it was made without the right to this repository (403, insufficient_scope)."""

    default_reason, default_layer = "ngc-key-forbidden", "entitlement"
    default_hint = "Give the key the service NGC Catalog, or make one in the organisation that may use this image"


class NgcImageNotFound(PermanentError):
    """The repository or the tag does not exist."""

    default_reason, default_layer = "ngc-image-not-found", "ngc"
    default_hint = "Choose a tag that the NGC catalogue lists for this image"


class NgcUnavailable(TransientError):
    """NGC answered 5xx, or not at all."""

    default_reason, default_layer = "ngc-unavailable", "ngc"


class NgcRateLimited(NgcUnavailable):
    """NGC answered 429: it is asked again, not sooner than it said."""

    default_reason, default_layer = "ngc-rate-limited", "rate-limit"


# --- claims, store, ledger ----------------------------------------------------------------------------------------


class ClaimHeld(PermanentError):
    """Another live run holds the claim."""

    default_reason, default_layer = "claim-held", "claim"
    default_hint = "Wait for that run to end, or stop it, and trigger again"


class Superseded(PermanentError):
    """A newer run has taken over; this one may not write any more."""

    default_reason, default_layer = "superseded", "claim"
    default_hint = "Trigger a new run instead of clearing tasks of an old one"


class RunIdReused(PermanentError):
    """The records under this run's id are another run's: one that was deleted since, or one of another DAG."""

    default_reason, default_layer = "run-id-reused", "claim"
    default_hint = "Trigger it again without a run id of your own, or with a new one: records are kept, never reused"


class StoreUnavailable(TransientError):
    """The object store did not answer, or a compare-and-swap lost too often."""

    default_reason, default_layer = "store-unavailable", "store"


class StoreMisconfigured(NeedsHumanError):
    """The bucket does not exist or may not be used."""

    default_reason, default_layer = "store-misconfigured", "store"
    default_hint = "Apply include/terraform/bootstrap, or correct store in the environment's file"


class LedgerError(PermanentError):
    """A record is missing where one must be, or cannot be read."""

    default_reason, default_layer = "ledger-record-missing", "ledger"


class SecretLeak(PermanentError):
    """Something that looks like a key was about to be written to a record."""

    default_reason, default_layer = "secret-in-record", "ledger"
    default_hint = "Report this as a defect: records never hold keys"


# --- infrastructure and cluster -----------------------------------------------------------------------------------


class TerraformFailed(PermanentError):
    """terraform ended with an error that a retry cannot mend."""

    default_reason, default_layer = "terraform-failed", "terraform"


class TerraformUnavailable(TransientError):
    """terraform ended with an error that may pass: throttling, a network failure, a held state lock."""

    default_reason, default_layer = "terraform-unavailable", "terraform"


class HelmFailed(PermanentError):
    """helm ended with an error."""

    default_reason, default_layer = "helm-failed", "helm"


class HelmUnavailable(TransientError):
    """helm could not reach the cluster or the chart repository, or another operation is in progress."""

    default_reason, default_layer = "helm-unavailable", "helm"


class AccessDenied(NeedsHumanError):
    """AWS or the cluster refuses our identity."""

    default_reason, default_layer = "access-denied", "cluster"
    default_hint = "Grant the worker's role an EKS access entry and eks:DescribeCluster"


class ClusterMissing(PermanentError):
    """EKS has no active cluster of that name in that region."""

    default_reason, default_layer = "cluster-missing", "cluster"


class ClusterUnavailable(TransientError):
    """The API server did not answer, or answered 429 or 5xx."""

    default_reason, default_layer = "cluster-unavailable", "api-server"


class ApplyRejected(PermanentError):
    """The API server refuses the object: unknown field, invalid value, admission."""

    default_reason, default_layer = "apply-rejected", "cluster"


class ApplyConflict(PermanentError):
    """Another field manager owns a field that we want to set."""

    default_reason, default_layer = "apply-conflict", "cluster"
    default_hint = "Let that manager give the field up, or leave the field out of the deployment"


class PortForwardFailed(TransientError):
    """The tunnel to a pod could not be opened or broke."""

    default_reason, default_layer = "port-forward-failed", "cluster"


class TunnelFailed(PortForwardFailed):
    """The tunnel could not be opened: the pod was not even asked."""

    default_reason, default_layer = "tunnel-failed", "api-server"


class PlatformNotReady(PermanentError):
    """Something that every deployment needs is missing in the cluster."""

    default_reason, default_layer = "platform-not-ready", "platform"


# --- waits, gates, decisions --------------------------------------------------------------------------------------


class GateFailed(PermanentError):
    """A pod of the new revision does not pass the gate."""

    default_reason, default_layer = "gate-failed", "gate"


class GateUnmeasured(TransientError):
    """The gate could not ask: nothing is known about the pod, good or bad."""

    default_reason, default_layer = "gate-unmeasured", "network"
    default_hint = "The measuring failed, not the model: look at the API server and at the route to the nodes"


class SmokeTestFailed(PermanentError):
    """The chat completion did not come, or its answer is not one."""

    default_reason, default_layer = "smoke-test-failed", "gate"


class BenchmarkFailed(PermanentError):
    """The benchmark did not yield a report that can be believed."""

    default_reason, default_layer = "benchmark-failed", "benchmark"


class BenchmarkRejected(PermanentError):
    """The report is sound and misses an objective."""

    default_reason, default_layer = "slo-missed", "benchmark"


class RolloutRejected(PermanentError):
    """The decision of the rollout was not `promoted`."""

    default_reason, default_layer = "rollout-rejected", "decision"


# --- for the operators --------------------------------------------------------------------------------------------


def is_retryable(error: BaseException) -> bool:
    """True when the same task may succeed if it is run again. Unknown errors are: a bug in our code or a library's
    hiccup costs a few retries, while a final verdict always comes as one of the classes above."""
    return not isinstance(error, (PermanentError, NeedsHumanError))


def one_line(error: BaseException) -> str:
    """The last line of a failed task's log: layer, reason slug, message, hint."""
    if isinstance(error, NimRolloutsError):
        text = f"layer={error.layer} reason={error.reason}: {error}"
    else:
        text = f"layer=unknown reason={type(error).__name__}: {redact(str(error)) or 'no message'}"
    return " ".join(text.split())


def error_classes(root: type[NimRolloutsError] = NimRolloutsError) -> Iterator[type[NimRolloutsError]]:
    """Every concrete public class of the tree, for the documentation's completeness test."""
    for cls in root.__subclasses__():
        if not cls.__name__.startswith("_"):
            yield cls
        yield from error_classes(cls)


def as_facts(error: BaseException) -> dict[str, Any]:
    """The error as ledger facts."""
    if isinstance(error, NimRolloutsError):
        facts: dict[str, Any] = {
            "error": type(error).__name__,
            "layer": error.layer,
            "reason": error.reason,
            "message": error.message,
            "hint": error.hint,
        }
        more = {name: getattr(error, name, None) for name in ("evidence", "diagnosis")}
        return facts | {name: value for name, value in more.items() if value}
    return {
        "error": type(error).__name__,
        "layer": "unknown",
        "reason": type(error).__name__,
        "message": redact(str(error)),
        "hint": "",
    }
