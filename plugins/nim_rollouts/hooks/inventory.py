"""What AWS still has of an environment, through the environment's connection. Reads only.

An environment's networks are written down as soon as they are known: once terraform's state is empty nothing else says
where an untagged thing would lie.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from nim_rollouts.core.environment import Environment
from nim_rollouts.core.errors import AccessDenied, InventoryUnknown, LeftoversFound, NimRolloutsError, TransientError
from nim_rollouts.core.inventory import Answer, Inventory, Scope, in_the_way, shortened

if TYPE_CHECKING:
    from nim_rollouts.clients.inventory.aws import ClientOf
    from nim_rollouts.clients.store import Store

#: In terraform's and AWS's messages.
_IDENTIFIER = re.compile(r"\b(?:vpc|subnet|sg|igw|rtb|eni|eipalloc|nat|vpce)-[0-9a-f]{8,17}\b")

#: An address of a VPC, in any module; not that of the account's default VPC, which no destroy takes away.
_IS_VPC = re.compile(r"(?:^|\.)aws_vpc\.[\w-]+(?:\[.*\])?$")


def take(environment: Environment, store: Store, say: Callable[[str], None] = lambda _: None) -> Inventory:
    """The inventory. `say` takes a line for each kind that cannot be looked at."""
    from nim_rollouts.clients.inventory import look

    scope = Scope(environment.name, environment.cluster.name, frozenset(networks(environment, store)))
    return look.take(clients(environment), scope, say)


def require_empty(inventory: Inventory) -> None:
    """Nothing, if the answer is empty.

    :raises LeftoversFound: something is left, of which at least one thing is not being deleted already
    :raises AccessDenied: a right is missing to look somewhere
    :raises InventoryUnknown: AWS did not answer somewhere, or is still deleting; looking again may help
    """
    if inventory.answer is Answer.EMPTY:
        return
    error = _error(inventory)
    # Into the record of the failure: the lines of a message end somewhere.
    error.evidence = inventory.as_facts()  # type: ignore[attr-defined]
    raise error


def _error(inventory: Inventory) -> NimRolloutsError:
    left, blind = inventory.leftovers, inventory.unseen
    besides = f"; and {shortened((one.text() for one in blind), 4)}" if blind else ""
    if left and all(one.going for one in left) and not inventory.denied:
        going = shortened((f"{one.kind} {one.id}" for one in left), 10)
        return InventoryUnknown(
            f"AWS is still deleting these, or what holds them: {going}{besides}",
            reason="leftovers-going",
            retry_after_s=60,
            hint="It is looked at again",
        )
    if left:
        told = "; ".join(one.text() for one in left[:10])
        more = f"; and {len(left) - 10} more, in the task's record" if len(left) > 10 else ""
        return LeftoversFound(
            f"{len(left)} things are still there: {told}{more}{besides}",
            hint="Nothing of this is deleted for you: remove first what holds, then what is held, and clear this task",
        )
    unknown = f"AWS does not tell whether anything is left: {shortened((one.text() for one in blind), 10)}"
    return untold(unknown, denied=inventory.denied)


def untold(message: str, *, denied: bool) -> NimRolloutsError:
    """The error of whoever could not look.

    :param denied: a right is missing, which the message names: looking again does not help
    """
    if denied:
        return AccessDenied(
            message,
            layer="teardown",
            reason="inventory-denied",
            hint="Grant the worker's role what is named (docs/worker-rights.json has it all), and clear this task",
        )
    return InventoryUnknown(message, hint="It is looked at again; if that does not help, clear this task later")


def strangers(environment: Environment, store: Store) -> list[str]:
    """What is in the environment's network and would hold a destroy up, a line each, as far as it can be seen."""
    from nim_rollouts.clients.inventory import look

    scope = Scope(environment.name, environment.cluster.name, frozenset(networks(environment, store)))
    return [one.text() for one in in_the_way(look.network(clients(environment), scope).leftovers)]


def holders(environment: Environment, store: Store | None, identifiers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What holds these parts of a network, each as `kind id of kind id`. What cannot be seen is left out.

    :param identifiers: of a VPC, subnet, security group, gateway or address
    """
    from nim_rollouts.clients.inventory import look

    wanted = set(identifiers)
    vpcs = {one for one in wanted if one.startswith("vpc-")} | set(networks(environment, store) if store else ())
    scope = Scope(environment.name, environment.cluster.name, frozenset(vpcs))
    return look.held(clients(environment), scope, wanted)


def naming_holders(environment: Environment, store: Store | None, error: NimRolloutsError) -> NimRolloutsError:
    """The same error, with what holds the things that its message names; the error itself where that cannot be told."""
    named = list(dict.fromkeys(_IDENTIFIER.findall(error.message)))
    if not named:
        return error
    try:
        found = holders(environment, store, named)
    except Exception:  # what terraform said is what matters
        return error
    told = [f"{one} is held by {shortened(held)}" for one in named if (held := found.get(one))]
    if not told:
        return error
    message = f"{error.message}; {'; '.join(told)}"
    named_error = type(error)(message, hint=error.hint, reason=error.reason, layer=error.layer)
    if isinstance(error, TransientError) and isinstance(named_error, TransientError):
        named_error.retry_after_s = error.retry_after_s
    return named_error


# --- the environment's networks -------------------------------------------------------------------------------------


def remember_networks(
    environment: Environment, store: Store, outputs: dict[str, Any], addresses: Callable[[str], Iterable[str]]
) -> None:
    """Write down the network of these outputs of terraform, if terraform has made it. One that it only reads is not the
    environment's alone: it stays, with what others have in it.

    :param addresses: identifier -> what terraform's state has under it; asked of a network once, until it is known
    """
    vpc = outputs.get("vpc_id")
    known = networks(environment, store)
    if vpc and vpc not in known and any(_IS_VPC.search(one) for one in addresses(vpc)):
        store.put(_key(environment), json.dumps({"vpcs": sorted({*known, vpc})}).encode())


def forget_networks(environment: Environment, store: Store) -> None:
    """Nothing is left in any of them."""
    store.delete(_key(environment))


def networks(environment: Environment, store: Store) -> list[str]:
    """Ids of the networks that were written down."""
    content = store.get(_key(environment))
    return list(json.loads(content)["vpcs"]) if content else []


def _key(environment: Environment) -> str:
    return f"networks/{environment.name}.json"


def clients(environment: Environment) -> ClientOf:
    """Clients through the environment's connection, made when they are asked for."""
    from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
    from botocore.config import Config

    # The connection's own settings (a proxy, for one) stay; a service that does not answer must not take hours.
    ours = Config(connect_timeout=10, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 5})
    hook = AwsBaseHook(aws_conn_id=environment.aws_conn_id, client_type="ec2", region_name=environment.region)
    # One for all: each new one reads botocore's tables again, half of what an inventory would take.
    session = cache(hook.get_session)

    @cache
    def client_of(service: str) -> Any:
        endpoint, config = hook.conn_config.get_service_endpoint_url(service_name=service), hook.config.merge(ours)
        return session().client(service, endpoint_url=endpoint, config=config, verify=hook.verify)

    return client_of
