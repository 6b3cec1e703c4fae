"""Down in order, before the cluster goes: no volume of a driver's is left in it.

A StatefulSet's claims outlive its release, and terraform takes the driver for EBS away with the cluster: their volumes
would stay on the bill, with nobody to say whose data they hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nim_rollouts.core import volumes
from nim_rollouts.core.errors import LeftoversFound, WaitStuck
from nim_rollouts.core.inventory import shortened
from nim_rollouts.core.teardown import Scope

if TYPE_CHECKING:
    from nim_rollouts.clients.cluster import Object
    from nim_rollouts.operators.base import Stage


def refuse_volumes(stage: Stage) -> None:
    """Nothing, where the cluster stays, or none is left in it. Those that their driver is deleting are waited for.

    :raises LeftoversFound: one is left; nothing was deleted
    """
    from nim_rollouts.operators.model import subject_of, wait_gone

    cluster = stage.session.cluster_if_any()
    if cluster is None or stage.session.facts("validate")["scope"] != Scope.EVERYTHING:
        return
    found = [one for one in cluster.list("v1", "PersistentVolume") if volumes.is_of_driver(one)]
    if not found:
        return
    claims = volumes.staying(cluster.list("v1", "PersistentVolumeClaim"))
    if left := [one for one in found if not volumes.goes(one, claims)]:
        what = shortened(dict.fromkeys(volumes.remedy(one) for one in left), 5)
        raise _outliving(left, f"{what[0].upper()}{what[1:]} while the driver runs; then clear this task")
    stage.log.info("their drivers are deleting %s", shortened(volumes.told(one) for one in found))
    try:
        wait_gone(stage, [subject_of(one) for one in found], stage.session.environment.budgets.delete_s)
    except WaitStuck as stuck:
        hint = "See in the driver's log why it does not delete them; then clear this task"
        raise _outliving(found, hint) from stuck


def _outliving(left: list[Object], hint: str) -> LeftoversFound:
    told = shortened((volumes.told(one) for one in left), 10)
    return LeftoversFound(f"volumes would outlive the cluster and the driver that deletes them: {told}", hint=hint)
