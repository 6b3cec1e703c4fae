"""Stopping a task that runs terraform: Airflow calls `on_kill`, lets the task go on, and kills it seconds later."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nim_rollouts.clients.terraform import Terraform


class StopsTerraform:
    """A task whose terraform is told to stop with it, also where there is none yet."""

    _terraform: Terraform | None = None
    _stopped = False

    def stoppable(self, terraform: Terraform) -> Terraform:
        """The task's terraform from now on."""
        self._terraform = terraform
        if self._stopped:
            terraform.stop()
        return terraform

    def on_kill(self) -> None:
        """terraform ends what is in flight, and begins nothing more."""
        self._stopped = True
        if self._terraform is not None:
            self._terraform.stop()
