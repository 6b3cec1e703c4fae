"""terraform for one state: init, plan, show, apply of exactly that plan, outputs, destroy, drift.

The root module is copied into `work_dir` first, so that nothing is ever written into include/. Variables go through a
file of mode 0600, credentials through the environment; argv holds neither. Processes are saved where one can: `init`
is skipped while root, backend, provider and lock file are those of the last one, and a plan is looked into with `show`
(seconds of provider start) only where something is replaced or destroyed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nim_rollouts.clients.terraform_events import LOCK_IN_USE_S, Diagnostic, diagnostics_of
from nim_rollouts.clients.terraform_plan import ApplySummary, PlanSummary, explained, from_events
from nim_rollouts.clients.terraform_process import Ended
from nim_rollouts.clients.terraform_runner import TerraformRunner
from nim_rollouts.clients.terraform_workdir import WorkDir, checksum, write_private
from nim_rollouts.clients.terraform_workdir import find_plugin_dir as find_plugin_dir
from nim_rollouts.core.errors import NeedsHumanError, NimRolloutsError, TerraformFailed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StateMark:
    """Which state it is: `lineage` tells two histories apart, `serial` grows with every change. ("", 0): none yet.
    `checksum`: of the plan whose apply left it, where that is known."""

    lineage: str
    serial: int
    checksum: str = ""


class Terraform(TerraformRunner):
    """One root module, one backend, one set of work files.

    :param root_dir: the root module, left untouched
    :param work_dir: folder of this state alone; survives the task, so that a retry finds what it left
    :param env: variables besides the inherited ones: AWS credentials, region, endpoints; or what gives them, which is
        asked before each command
    :param plugin_dir: filesystem mirror of providers; None looks for one (`find_plugin_dir`), else terraform downloads
    :param progress: takes one readable line at a time
    :param lock_timeout_s: how long to wait for a state lock that somebody else holds
    :param patience_s: how long to wait for a terraform that a dead worker left at work in this folder
    """

    def __init__(
        self,
        root_dir: str | Path,
        work_dir: str | Path,
        env: Mapping[str, str] | Callable[[], Mapping[str, str]],
        plugin_dir: str | Path | None = None,
        *,
        progress: Callable[[str], None] | None = None,
        lock_timeout_s: int = 60,
        patience_s: float = LOCK_IN_USE_S,
    ) -> None:
        self.patience_s = patience_s
        self.root_dir, self.work_dir = Path(root_dir), Path(work_dir).absolute()
        self.files = WorkDir(self.root_dir, self.work_dir)
        super().__init__(
            self.files,
            env if callable(env) else lambda: env,
            say=progress or log.info,
            lock_timeout_s=lock_timeout_s,
        )
        self.plugin_dir = Path(plugin_dir) if plugin_dir else find_plugin_dir(self.env())
        self.plan_file = self.work_dir / "plan.tfplan"
        self._summary_file = self.work_dir / "plan.summary.json"
        #: The state of an earlier apply that this object has uploaded in its place.
        self.brought_home: StateMark | None = None
        #: The last plan as `show` tells it, if it was looked into.
        self.shown: dict[str, Any] = {}
        #: Whether the last apply may have changed anything; False where it is certain that it has not.
        self.began = False

    # --- commands -------------------------------------------------------------------------------------------------

    def init(self, backend: Mapping[str, Any], *, lock_file: bytes | None = None) -> None:
        """Copy the root and make it ready; done at once if it is. `backend`: bucket, key, region of the state.

        Waits for a terraform that an earlier, dead worker left running here.

        :param lock_file: provider versions that must be used: those of the plan that is to be applied
        """
        self._process.wait_for_earlier(self.patience_s, self.say)
        config = {key: value for key, value in backend.items() if value is not None}
        fingerprint = self.files.fingerprint(backend=config, plugin_dir=self.plugin_dir, binary=self.binary())
        if not self.files.refresh(fingerprint, mirror=self.plugin_dir is not None, lock_file=lock_file):
            self.files.initialising()
            file = self.work_dir / "backend.tfbackend.json"
            write_private(file, json.dumps(config))
            argv = ["init", "-reconfigure", f"-backend-config={file}"]
            if self.plugin_dir is not None:
                argv.append(f"-plugin-dir={self.plugin_dir}")
            self._text("init", argv)
            self.files.initialised(fingerprint)
        self._push_errored_state()

    def plan(
        self,
        variables: Mapping[str, Any],
        destroy: bool = False,
        *,
        explain: bool | None = None,
        targets: Sequence[str] = (),
    ) -> PlanSummary:
        """Plan, save the plan in `plan_file` and summarise it. Nothing is changed.

        :param explain: look into the plan for what forces a replacement; None: where something is replaced or goes.
            `shown` is what was found
        :param targets: addresses to plan alone, with what they need; empty: everything
        """
        argv = ["plan", self._variables(variables), f"-out={self.plan_file}"]
        argv += [f"-target={address}" for address in targets]
        self.shown = {}
        self.plan_file.unlink(missing_ok=True)
        progress = self._events("plan", argv + (["-destroy"] if destroy else []))
        os.chmod(self.plan_file, 0o600)
        summary = from_events(progress, checksum=checksum(self.plan_file), plan_file=str(self.plan_file))
        mark = self._state_of_plan()
        summary = replace(summary, lineage=mark.lineage, serial=mark.serial, destruction=destroy)
        if explain or (explain is None and summary.destructive and not destroy):
            self.shown = self.show()
            summary = explained(summary, self.shown)
        write_private(self._summary_file, json.dumps(summary.as_facts()))
        for address, action in summary.drift:
            self.say(f"changed outside of terraform ({action}): {address}")
        self.say(f"plan: {summary.text()}")
        return summary

    def show(self, plan_file: str | Path | None = None) -> dict[str, Any]:
        """The saved plan in full, as terraform tells it (`show -json`). Holds sensitive values: not for logs, records
        or XCom; see `terraform_plan.planned_values`."""
        shown: dict[str, Any] = json.loads(self._text("show", ["show", "-json", str(plan_file or self.plan_file)]))
        return shown

    @contextmanager
    def saved_plan(self, content: bytes) -> Iterator[Path]:
        """A plan that was kept elsewhere, as a file for `show` and `apply`. In the work folder: what a killed worker
        leaves there is overwritten by the next."""
        file = self.work_dir / "saved.tfplan"
        write_private(file, content)
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)

    def apply(self, plan_file: str | Path | None = None, *, expect_checksum: str | None = None) -> ApplySummary:
        """Apply exactly the saved plan. With `expect_checksum`, refuse a plan file that is not the one meant."""
        self.began = False
        plan = Path(plan_file) if plan_file else self.plan_file
        if not plan.is_file():
            raise TerraformFailed(
                f"There is no saved plan {plan}", reason="plan-missing", hint="Clear the plan task, which makes it"
            )
        actual = checksum(plan)
        if expect_checksum is not None and actual != expect_checksum:
            raise TerraformFailed(
                f"The saved plan is another than the one that was summarised (SHA-256 {actual[:12]}, expected"
                f" {expect_checksum[:12]})",
                reason="plan-changed",
                hint="Clear the plan task and, where the policy asks for it, have the new plan approved",
            )
        since = time.monotonic()
        self._left_file.unlink(missing_ok=True)
        self.began = True
        try:
            progress = self._events("apply", ["apply", str(plan)], total=self._steps_of(actual))
        except NimRolloutsError:
            self.began = self._stepped
            if not self.began:
                # What it notes is then another's state, not one that we left.
                self._left_file.unlink(missing_ok=True)
            raise
        summary = ApplySummary(
            applied=progress.done,
            add=progress.counts.get("add", 0),
            change=progress.counts.get("change", 0),
            destroy=progress.counts.get("remove", 0),
            elapsed_s=round(time.monotonic() - since, 1),
        )
        self.say(f"apply: {summary.text()}")
        return summary

    def destroy(self, variables: Mapping[str, Any]) -> ApplySummary:
        """Plan the destruction of everything in the state and apply that plan; nothing in the state is no error."""
        plan = self.plan(variables, destroy=True)
        if not plan.has_changes:
            return ApplySummary([], 0, 0, 0, 0.0)
        return self.apply(expect_checksum=plan.checksum)

    def drift(self, variables: Mapping[str, Any]) -> PlanSummary:
        """What reality and configuration differ in, as a plan that is not kept (`plan -detailed-exitcode`): its
        `changes` are what an apply would do, its `drift` what of it was changed outside of terraform.

        Without the state's lock: it writes no state, and a killed one must not leave a lock in a rollout's way."""
        argv = ["plan", self._variables(variables), "-detailed-exitcode"]
        progress = self._events("drift", argv, good=(0, 2), lock=False)
        summary = from_events(progress, checksum="", plan_file="")
        self.say(f"drift: {summary.text()}")
        return summary

    def output(self) -> dict[str, Any]:
        """The outputs' values by name, without those marked sensitive."""
        shown = json.loads(self._text("output", ["output", "-json"]) or "{}")
        return {name: item["value"] for name, item in shown.items() if not item.get("sensitive")}

    def state_list(self, identifier: str = "") -> list[str]:
        """Addresses of the managed resources in the state; empty when there is none.

        :param identifier: of AWS: only of what has it
        """
        only = [f"-id={identifier}"] if identifier else []
        try:
            addresses = self._text("state-list", ["state", "list", *only]).split("\n")
        except TerraformFailed as error:
            if "No state file was found" in error.message:
                return []
            raise
        return [address for address in addresses if address and not re.match(r"^(module\..+\.)?data\.", address)]

    def state_mark(self) -> StateMark:
        """Lineage and serial of the state as it is now."""
        pulled = self._text("state-pull", ["state", "pull"])
        return _mark(json.loads(pulled)) if pulled.strip() else StateMark("", 0)

    def state_serial(self) -> int | None:
        """The state's serial number, which grows with every change; None when there is no state."""
        return self.state_mark().serial or None

    def left(self) -> StateMark | None:
        """The state that the last apply of this work folder left, however it ended; None if it could not tell."""
        try:
            noted = dict(
                re.findall(r'^  "(plan|serial|lineage)": "?([^",]*)', self._left_file.read_text(), re.MULTILINE)
            )
            return StateMark(noted["lineage"], int(noted["serial"]), noted["plan"])
        except (FileNotFoundError, KeyError, ValueError):
            return None

    # --- files ----------------------------------------------------------------------------------------------------

    def lock_file(self) -> bytes | None:
        """The provider versions that `init` chose: to travel with a plan, which only these can apply."""
        return self.files.lock_file()

    def _variables(self, variables: Mapping[str, Any]) -> str:
        file = self.work_dir / "variables.tfvars.json"
        write_private(file, json.dumps(dict(variables)))
        return f"-var-file={file}"

    def _push_errored_state(self) -> None:
        """A state that an earlier apply could not upload is the only record of what it made: bring it home first."""
        left = self.files.errored
        if not left.is_file():
            return
        self.say("bringing in the state that an earlier apply could not upload")

        def attempt(lock_timeout_s: int) -> tuple[Ended, list[Diagnostic], None]:
            ended = self._run("state-push", ["state", "push", f"-lock-timeout={lock_timeout_s}s", str(left)])
            return ended, diagnostics_of(ended.stderr), None

        try:
            self._past_own_lock("state-push", attempt)
        except TerraformFailed as error:
            raise NeedsHumanError(
                f"An earlier apply left {left}, which the backend refuses: {error.message}",
                layer="terraform",
                reason="state-not-uploaded",
                hint="Compare it with `terraform state pull` and push the right one by hand, then remove the file",
            ) from error
        # Asked for: of the first state of all the file has neither lineage nor serial yet.
        self.brought_home = self.state_mark()
        left.rename(left.with_suffix(f".tfstate.{int(time.time())}"))

    def _state_of_plan(self) -> StateMark:
        """The state that the saved plan starts from. It lies in the plan file; that saves asking the backend again."""
        try:
            with zipfile.ZipFile(self.plan_file) as plan:
                return _mark(json.loads(plan.read("tfstate")))
        except (zipfile.BadZipFile, KeyError, ValueError, TypeError):
            return self.state_mark()  # another version's plan file is another's

    def _steps_of(self, plan_checksum: str) -> int:
        try:
            summary = PlanSummary.from_facts(json.loads(self._summary_file.read_text()))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0
        return summary.steps if summary.checksum == plan_checksum else 0


def _mark(state: dict[str, Any]) -> StateMark:
    return StateMark(str(state["lineage"]), int(state["serial"]))
