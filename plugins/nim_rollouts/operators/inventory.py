"""What AWS still has of an environment, as a task: after a teardown it must be nothing."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from nim_rollouts.core.errors import NimRolloutsError
from nim_rollouts.operators.base import Facts, Stage
from nim_rollouts.operators.terraform import TerraformStage

if TYPE_CHECKING:
    from nim_rollouts.core.inventory import Inventory

#: The kind of the ledger's record; it is written whatever the answer is.
INVENTORY = "inventory"


class InventoryOperator(TerraformStage):
    """Looks at terraform's state and at AWS, by tag, by name and by network, and writes down what is there. Changes
    and deletes nothing. Usable in a DAG of your own: it needs no claim and no task before it.

    :param must_be_empty: fail unless the answer is `empty`; else leftovers are only told
    """

    claim_scopes: ClassVar[tuple[str, ...]] = ()
    reads_only: ClassVar[bool] = True
    #: terraform's work folder. Without the environment's claim another task's terraform may be at work in its own: what
    #: that one has written there (import blocks, a state to bring home) is not to be touched.
    work: ClassVar[str | None] = "inventory"

    def __init__(self, *, must_be_empty: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.must_be_empty = must_be_empty

    def run(self, stage: Stage) -> Facts:
        """Empty is success; leftovers are named with what holds them; not being able to look is neither."""
        from nim_rollouts.hooks import inventory

        session = stage.session
        found = inventory.take(session.environment, session.store, stage.log.warning)
        found = self._with_state(stage, found)
        facts = found.as_facts()
        session.ledger.record(stage.name, stage.try_number, INVENTORY, facts)
        for one in found.leftovers:
            stage.log.warning("still there: %s", one.text())
        stage.log.info(
            "answer: %s; %d things left, %d kinds looked at, %d not seen",
            found.answer, len(found.leftovers), len(found.looked_at), len(found.unseen),
        )  # fmt: skip
        if self.must_be_empty:
            inventory.require_empty(found)
            inventory.forget_networks(session.environment, session.store)
        return facts

    def _with_state(self, stage: Stage, found: Inventory) -> Inventory:
        """The inventory with what terraform's state still holds."""
        from nim_rollouts.core.inventory import STATE, Unseen, in_state

        try:
            addresses = self.terraform(stage, purpose=self.work).state_list()
        except NimRolloutsError as error:
            unseen = Unseen(STATE, f"it cannot be read: {error.message}")
            stage.log.warning("not seen: %s", unseen.text())
            return dataclasses.replace(found, unseen=(*found.unseen, unseen))
        left = tuple(in_state(address) for address in addresses)
        return dataclasses.replace(
            found, leftovers=(*left, *found.leftovers), looked_at=tuple(sorted([*found.looked_at, STATE]))
        )
