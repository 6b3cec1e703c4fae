"""Taking over what an interrupted apply made and its state does not know, instead of making it again.

The plan of the next try names what it would create; whatever of it AWS has already, and is ours, becomes an import
block in the work copy of the root, so that the plan takes it over. The saved plan carries the imports: they are shown,
approved and applied with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nim_rollouts.clients.terraform_lookup import Client, Found, Undetermined, known, look
from nim_rollouts.core.adoption import AGAIN, LOG_GROUP, Creation, creations, import_blocks, in_state, made, replaced
from nim_rollouts.core.errors import AccessDenied, NeedsHumanError, TerraformUnavailable

if TYPE_CHECKING:
    from nim_rollouts.clients.terraform import Terraform
    from nim_rollouts.clients.terraform_plan import PlanSummary

#: The file of import blocks in the work copy.
BLOCKS = "nim-rollouts-taken-over.tf"
#: How long what is found half-made may take to come up: an EKS cluster takes 10 to 15 minutes.
PATIENCE_S = 30 * 60
_POLL_S = 10.0


class Adoption:
    """One environment's interrupted apply, or the log group that EKS left behind.

    :param terraform: initialised on the environment's state
    :param variables: of the root
    :param client: gives a boto3 client by service name, of the environment's account and region
    :param say: takes one readable line at a time
    :param interrupted: look for everything that the plan creates; False: for `logs` alone
    :param logs: name of a log group that is ours by its name (`terraform_lookup.written_again`)
    """

    def __init__(
        self, terraform: Terraform, variables: Mapping[str, Any], client: Client, say: Callable[[str], None],
        *, patience_s: float = PATIENCE_S, interrupted: bool = True, logs: str | None = None,
    ) -> None:  # fmt: skip
        self.terraform, self.variables, self.client, self.say = terraform, variables, client, say
        self.interrupted, self.logs = interrupted, logs
        self.patience_s = patience_s
        # Before a new apply overwrites it. Empty on another host: then the look-ups alone must do.
        self.told = made(_lines(terraform.work_dir / "logs" / "apply.out"))

    def plan(self) -> PlanSummary:
        """The plan of everything that is left to do, with what is there already taken over.

        :raises NeedsHumanError: something is there twice, failed while it came up, or cannot be taken over
        """
        ids: dict[str, str] = {}
        while True:
            self._write(ids)
            plan = self.terraform.plan(self.variables, explain=True)
            # What hangs on something found now can only be looked for in the next round.
            new = self._find(self.terraform.shown, ids)
            if not new:
                return plan
            for address, identifier in sorted(new.items()):
                whence = (
                    "made again by EKS for its last logs"
                    if identifier == self.logs
                    else "made by the interrupted apply"
                )
                self.say(f"{whence}, unknown to the state: {address} ({identifier})")
            ids |= new

    def settle(self) -> None:
        """Bring what is there already into the state, and do nothing else: a plan to destroy takes nothing over.

        :raises NeedsHumanError: as `plan`; or that is not possible without making or removing something
        """
        found = self.plan().imports
        if not found:
            return
        plan = self.terraform.plan(self.variables, targets=found)
        more = [f"{action} {address}" for address, action in plan.changes if not _harmless(address, action, found)]
        if more:
            raise NeedsHumanError(
                f"What an interrupted apply made cannot be brought into the state alone: {', '.join(more)}",
                layer="terraform",
                reason="adoption-impossible",
                hint="Run nim_deploy to its end first, or remove by hand what the log above names",
            )
        self.terraform.apply(expect_checksum=plan.checksum)

    # --- looking --------------------------------------------------------------------------------------------------

    def _find(self, shown: Mapping[str, Any], ids: Mapping[str, str]) -> dict[str, str]:
        taken = in_state(shown)
        if self.interrupted:
            self._refuse_second(shown, taken)
        new: dict[str, str] = {}
        for creation in creations(shown):
            if creation.address in ids:
                continue
            found = self._logs(creation) or (self._one(creation, taken) if self.interrupted else None)
            if found is not None:
                new[creation.address] = found.id
                taken.add((creation.type, found.id))
        return new

    def _logs(self, creation: Creation) -> Found | None:
        name = creation.values.get("name")
        return Found(self.logs) if self.logs and creation.type == LOG_GROUP and name == self.logs else None

    def _one(self, creation: Creation, taken: set[tuple[str, str]]) -> Found | None:
        told = self.told.get(creation.address)
        if not known(creation.type):
            # Most types are imported by their id, and this one was told by terraform itself.
            return Found(told) if told and (creation.type, told) not in taken else None
        deadline = time.monotonic() + self.patience_s
        while True:
            found = [one for one in self._look(creation) if (creation.type, one.id) not in taken]
            if len(found) > 1:
                found = [one for one in found if one.id == told] or found
            if len(found) > 1:
                raise NeedsHumanError(
                    f"AWS has several of {creation.address}: {', '.join(sorted(one.id for one in found))}",
                    layer="terraform",
                    reason="adoption-ambiguous",
                    hint="Remove those that nothing uses, then clear this task",
                )
            if not found:
                return None
            if found[0].broken:
                raise NeedsHumanError(
                    f"{creation.address}, made by an interrupted apply, is {found[0].state} in AWS ({found[0].id})",
                    layer="terraform",
                    reason="adoption-broken",
                    hint="See in AWS's console why, remove it, then clear this task",
                )
            if not found[0].coming_up:
                return found[0]
            if time.monotonic() > deadline:
                raise TerraformUnavailable(
                    f"{creation.address} is still {found[0].state} after {self.patience_s:.0f} s ({found[0].id})",
                    reason="adoption-coming-up",
                )
            self.say(f"{creation.address} is {found[0].state} in AWS: waiting for it")
            time.sleep(_POLL_S)

    def _look(self, creation: Creation) -> list[Found]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return look(creation, self.client)
        except Undetermined:
            return []
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if "Denied" in code or "Unauthorized" in code:
                raise AccessDenied(
                    f"AWS does not tell whether {creation.address} exists already: {error}",
                    layer="aws",
                    hint="Grant the identity of the AWS connection this reading call, then clear this task",
                ) from error
            raise TerraformUnavailable(f"{creation.address}: {error}", reason="aws-unreachable") from error
        except BotoCoreError as error:
            raise TerraformUnavailable(f"{creation.address}: {error}", reason="aws-unreachable") from error

    def _refuse_second(self, shown: Mapping[str, Any], taken: set[tuple[str, str]]) -> None:
        """A replacement that is made first leaves two of a kind when it is cut off; its address is taken by the old."""
        left = [
            f"{creation.address} ({one.id})"
            for creation in replaced(shown)
            if known(creation.type)
            for one in self._look(creation)
            if (creation.type, one.id) not in taken
        ]
        if left:
            raise NeedsHumanError(
                f"An interrupted replacement left a second one of {', '.join(left)}",
                layer="terraform",
                reason="adoption-second",
                hint="Remove those by hand (nothing uses them yet), then clear this task",
            )

    def _write(self, ids: Mapping[str, str]) -> None:
        file = self.terraform.copy / BLOCKS
        if ids:
            file.write_text(import_blocks(ids))
        else:
            file.unlink(missing_ok=True)


def _harmless(address: str, action: str, imports: Iterable[str]) -> bool:
    if action == "create":
        return address.partition(".")[0] in AGAIN
    return action in ("import", "update") and address in imports


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
