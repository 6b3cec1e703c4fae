"""All looks together. One that fails makes its kinds unknown and does not hide the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from nim_rollouts.clients.inventory import balancers, cluster, compute, iam, rest
from nim_rollouts.clients.inventory import network as networks
from nim_rollouts.clients.inventory.aws import ClientOf, Look, code_of, service_of, unseen
from nim_rollouts.core.inventory import Inventory, Scope, Thing, Unseen, found_by, holders, judge, ref

LOOKS: tuple[Look, ...] = (
    networks.NETWORKS, *networks.LOOKS, *compute.LOOKS, *balancers.LOOKS, *cluster.LOOKS, *iam.LOOKS, *rest.LOOKS,
)  # fmt: skip
#: What lies in a network and can hold a part of it.
IN_NETWORK: tuple[Look, ...] = (networks.NETWORKS, *networks.LOOKS, compute.LOOKS[0], *balancers.LOOKS)


def take(client_of: ClientOf, scope: Scope, say: Callable[[str], None] = lambda _: None) -> Inventory:
    """Everything of the environment that AWS still has.

    :param scope: `vpcs` need not be complete: networks with the environment's tag are added
    :param say: takes one line for each kind that cannot be looked at
    """
    things, failed, scope = _see(client_of, scope, LOOKS, say)
    kinds = {kind for one in LOOKS for kind in one.kinds} - {one.kind for one in failed}
    return judge(things, failed, kinds, scope)


def held(client_of: ClientOf, scope: Scope, identifiers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What holds a VPC, subnet, security group, gateway or address, by its id. What cannot be seen is left out."""
    things, _, _ = _see(client_of, scope, IN_NETWORK, lambda _: None)
    return holders(things, identifiers)


def network(client_of: ClientOf, scope: Scope) -> Inventory:
    """What lies in the environment's networks, as far as it can hold a part of them."""
    things, failed, scope = _see(client_of, scope, IN_NETWORK, lambda _: None)
    return judge(things, failed, (), scope)


def _see(
    client_of: ClientOf, scope: Scope, looks: Iterable[Look], say: Callable[[str], None]
) -> tuple[list[Thing], list[Unseen], Scope]:
    seen: dict[str, Thing] = {}
    failed: list[Unseen] = []
    away: dict[tuple[str, ...], Exception] = {}
    for look in looks:
        try:
            if (error := away.get(look.services)) is not None:
                raise error
            for thing in look.see(*(client_of(service) for service in look.services), scope):
                # The first time says the most: a key seen through its alias has the reason with it.
                seen.setdefault(ref(thing.kind, thing.id), thing)
        except Exception as error:
            if not _is_aws(error):
                raise
            failed += [unseen(kind, service_of(client_of, look.services, error), error) for kind in look.kinds]
            say(f"not seen: {failed[-1].text()}")
            # Without an answer at all, asking the same service for every other kind only takes time.
            if not code_of(error):
                away[look.services] = error
        if look is networks.NETWORKS:
            found = {one.id for one in seen.values() if found_by(one, scope)}
            scope = dataclasses.replace(scope, vpcs=scope.vpcs | found)
    return list(seen.values()), failed, scope


def _is_aws(error: Exception) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    return isinstance(error, (BotoCoreError, ClientError))
