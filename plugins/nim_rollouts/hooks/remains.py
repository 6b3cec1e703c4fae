"""What AWS still has, of a step of a teardown: for a wait's trigger (in a thread) and for its worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from nim_rollouts.clients import remains
from nim_rollouts.clients.inventory.aws import ClientOf, service_of, unseen
from nim_rollouts.clients.remains import Remain
from nim_rollouts.core.inventory import ENVIRONMENT_TAG
from nim_rollouts.core.teardown import Scope
from nim_rollouts.hooks import inventory
from nim_rollouts.hooks.session import Session

Removed = Sequence[Mapping[str, Any]]


class Cloud(StrEnum):
    """What to look for. The values are what a wait's log shows."""

    ACCESS_POINTS = "EFS access points"
    INSTANCES = "instances of Karpenter's"
    BALANCERS = "load balancers and their network interfaces"

    @property
    def remedy(self) -> str:
        """What a person does about what does not go."""
        return _REMEDIES[self]


def look(session: Session, cloud: Cloud, removed: Removed) -> list[Remain]:
    """What is still there; empty when nothing is.

    :param removed: what the deleting stage had named
    :raises AccessDenied: a right is missing
    :raises InventoryUnknown: AWS does not tell, and unknown is not empty
    """
    from botocore.exceptions import BotoCoreError, ClientError

    services, see = _LOOKS[cloud]
    client_of = inventory.clients(session.environment)
    try:
        return see(session, client_of, removed)
    except (BotoCoreError, ClientError) as error:
        blind = unseen(str(cloud), service_of(client_of, services, error), error)
        message = f"AWS does not tell about {blind.text()} (region {session.environment.region})"
        raise inventory.untold(message, denied=blind.action is not None) from error


def _scope(session: Session) -> Scope:
    """A run that is not known to take more takes one deployment."""
    return Scope((session.ledger.read("validate", "result") or {}).get("scope", Scope.DEPLOYMENT))


def _access_points(session: Session, client_of: ClientOf, removed: Removed) -> list[Remain]:
    """Those of the volumes that were named; where the file systems go, all that are on them. What others have on one
    that stays is nobody's business here."""
    known = [str(one["handle"]) for one in removed if one.get("handle")]
    whole = _scope(session) is Scope.EVERYTHING
    if not known and not whole:
        return []
    efs = client_of("efs")
    on = remains.file_systems(efs, ENVIRONMENT_TAG, session.environment.name) if whole else []
    return remains.access_points(efs, on, known)


def _instances(session: Session, client_of: ClientOf, removed: Removed) -> list[Remain]:
    if _scope(session) is Scope.DEPLOYMENT:
        return []
    return remains.instances(client_of("ec2"), session.environment.cluster.name)


def _balancers(session: Session, client_of: ClientOf, removed: Removed) -> list[Remain]:
    """Nothing where the network stays: those of others stay with it."""
    if _scope(session) is not Scope.EVERYTHING:
        return []
    ec2 = client_of("ec2")
    ours = remains.vpcs(ec2, ENVIRONMENT_TAG, session.environment.name)
    found = remains.balancers(client_of("elbv2"), client_of("elb"), session.environment.cluster.name)
    return [*found, *remains.balancer_interfaces(ec2, ours)]


#: The services that are asked, and who asks them.
_LOOKS: dict[Cloud, tuple[tuple[str, ...], Callable[[Session, ClientOf, Removed], list[Remain]]]] = {
    Cloud.ACCESS_POINTS: (("efs",), _access_points),
    Cloud.INSTANCES: (("ec2",), _instances),
    # DescribeTags is a call of EC2's too, but not one that is made.
    Cloud.BALANCERS: (("elbv2", "elb", "ec2"), _balancers),
}
_REMEDIES = {
    Cloud.ACCESS_POINTS: "See in the log of the EFS CSI controller why it does not delete them, or delete them in EFS",
    Cloud.INSTANCES: "See in Karpenter's log why it does not end them; without a Karpenter terminate them in EC2",
    Cloud.BALANCERS: "Find out who made them; without their controller delete the load balancers in EC2",
}
