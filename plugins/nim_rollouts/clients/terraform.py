"""terraform for one environment: init, plan, apply of exactly that plan, outputs, destroy.

The root module is copied into `work_dir` first, so that nothing is ever written into include/. Variables go through a
file of mode 0600, credentials through the environment; argv holds neither.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nim_rollouts.clients.terraform_events import LockInfo, Progress, failure, lock_info
from nim_rollouts.clients.terraform_plan import ApplySummary, PlanSummary, summarise
from nim_rollouts.clients.terraform_process import Ended, TerraformProcess, own_lock
from nim_rollouts.core.errors import NeedsHumanError, TerraformFailed, TerraformUnavailable, ToolMissing

log = logging.getLogger(__name__)

#: S3's lock file needs no experiment flag from this version on.
MINIMUM_VERSION = (1, 11)

#: Variables of the worker that terraform may see. Airflow's own (connections, keys) are not among them.
_INHERITED = re.compile(
    r"^(PATH|HOME|USER|LOGNAME|LANG|LC_ALL|TMPDIR|TEMP|SSL_CERT_FILE|SSL_CERT_DIR|TF_PLUGIN_CACHE_DIR|TF_CLI_CONFIG_FILE"
    r"|AWS_.*|(?i:https?_proxy|no_proxy))$"
)
_MIRRORS = ("~/.terraform.d/plugins", "/usr/share/terraform/plugins", "/usr/local/share/terraform/plugins")
_MIRROR_ROOTS = ("/opt", "/usr/share", "/usr/local/share", "/var/lib", "~")
_NEVER_COPIED = shutil.ignore_patterns(".terraform", "*.tfstate", "*.tfstate.*", "*.tfplan", "crash.log")


class Terraform:
    """One root module, one backend, one set of work files.

    :param root_dir: the root module, left untouched
    :param work_dir: folder of this environment alone; survives the task, so that a retry finds what it left
    :param env: variables besides the inherited ones: AWS credentials, region, endpoints
    :param plugin_dir: filesystem mirror of providers; None looks for one (`find_plugin_dir`), else terraform downloads
    :param progress: takes one readable line at a time
    :param lock_timeout_s: how long to wait for a state lock that somebody else holds
    """

    def __init__(
        self,
        root_dir: str | Path,
        work_dir: str | Path,
        env: Mapping[str, str],
        plugin_dir: str | Path | None = None,
        *,
        progress: Callable[[str], None] | None = None,
        lock_timeout_s: int = 60,
    ) -> None:
        self.root_dir, self.work_dir = Path(root_dir), Path(work_dir).absolute()
        self.env = _environment(env) | {"TF_DATA_DIR": str(self.work_dir / "data")}
        self.plugin_dir = Path(plugin_dir) if plugin_dir else find_plugin_dir(self.env | dict(env))
        self.say = progress or log.info
        self.lock_timeout_s = lock_timeout_s
        self.copy = self.work_dir / "root"
        self.plan_file = self.work_dir / "plan.tfplan"
        self._summary_file = self.work_dir / "plan.summary.json"
        self._variables_file = self.work_dir / "variables.tfvars.json"
        self._process = TerraformProcess(self.work_dir)
        self._binary: str | None = None
        self._earlier: dict[str, Any] | None = None

    # --- commands -------------------------------------------------------------------------------------------------

    def init(self, backend: Mapping[str, Any]) -> None:
        """Copy the root and make it ready. `backend`: bucket, key, region of the state.

        Waits for a terraform that an earlier, dead worker left running here.
        """
        self._earlier = self._process.wait_for_earlier(self.lock_timeout_s, self.say)
        self._copy_root()
        config = self.work_dir / "backend.tfbackend.json"
        _write_private(config, json.dumps({key: value for key, value in backend.items() if value is not None}))
        argv = ["init", "-reconfigure", f"-backend-config={config}", f"-lock-timeout={self.lock_timeout_s}s"]
        if self.plugin_dir is not None:
            argv.append(f"-plugin-dir={self.plugin_dir}")
        self._text("init", argv)
        self._push_errored_state()

    def plan(self, variables: Mapping[str, Any], destroy: bool = False) -> PlanSummary:
        """Plan, save the plan in `plan_file` and summarise it. Nothing is changed."""
        _write_private(self._variables_file, json.dumps(dict(variables)))
        argv = ["plan", f"-var-file={self._variables_file}", f"-out={self.plan_file}", *self._locking()]
        self._events("plan", argv + (["-destroy"] if destroy else []))
        os.chmod(self.plan_file, 0o600)
        summary = summarise(
            json.loads(self._text("show", ["show", "-json", str(self.plan_file)])),
            checksum=checksum(self.plan_file),
            plan_file=str(self.plan_file),
        )
        _write_private(self._summary_file, json.dumps(summary.as_facts()))
        for address, action in summary.drift:
            self.say(f"changed outside of terraform ({action}): {address}")
        self.say(f"plan: {summary.text()}")
        return summary

    def apply(self, plan_file: str | Path | None = None, *, expect_checksum: str | None = None) -> ApplySummary:
        """Apply exactly the saved plan. With `expect_checksum`, refuse a plan file that is not the one meant."""
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
        began = time.monotonic()
        progress = self._events("apply", ["apply", *self._locking(), str(plan)], total=self._steps_of(actual))
        summary = ApplySummary(
            applied=progress.done,
            add=progress.counts.get("add", 0),
            change=progress.counts.get("change", 0),
            destroy=progress.counts.get("remove", 0),
            elapsed_s=round(time.monotonic() - began, 1),
        )
        self.say(f"apply: {summary.text()}")
        return summary

    def destroy(self, variables: Mapping[str, Any]) -> ApplySummary:
        """Plan the destruction of everything in the state and apply it; nothing in the state is no error."""
        plan = self.plan(variables, destroy=True)
        if not plan.has_changes:
            return ApplySummary([], 0, 0, 0, 0.0)
        return self.apply(expect_checksum=plan.checksum)

    def output(self) -> dict[str, Any]:
        """The outputs' values by name, without those marked sensitive."""
        shown = json.loads(self._text("output", ["output", "-json"]) or "{}")
        return {name: item["value"] for name, item in shown.items() if not item.get("sensitive")}

    def state_list(self) -> list[str]:
        """Addresses of the managed resources in the state; empty when there is none."""
        try:
            addresses = self._text("state-list", ["state", "list"]).split("\n")
        except TerraformFailed as error:
            if "No state file was found" in error.message:
                return []
            raise
        return [address for address in addresses if address and not re.match(r"^(module\..+\.)?data\.", address)]

    def state_serial(self) -> int | None:
        """The state's serial number, which grows with every change; None when there is no state."""
        pulled = self._text("state-pull", ["state", "pull"])
        return int(json.loads(pulled)["serial"]) if pulled.strip() else None

    def stop(self) -> None:
        """Ask a running command to end properly (one SIGINT). For an operator's on_kill; returns at once."""
        self._process.stop()

    # --- running --------------------------------------------------------------------------------------------------

    def _events(self, name: str, argv: list[str], total: int = 0) -> Progress:
        """Run a command with `-json`; raises what its diagnostics amount to."""
        for unlocked in (False, True):
            progress = Progress(total)
            ended = self._run(name, [*argv[:1], "-json", *argv[1:]], self._shown(progress))
            if ended.status == 0:
                return progress
            lock = lock_info(progress.errors)
            if lock is None or unlocked or not self._unlock(lock):
                break
        raise self._error(name, progress, ended)

    def _text(self, name: str, argv: list[str]) -> str:
        """Run a command that answers with text; raises with what it wrote to stderr."""
        ended = self._run(name, argv, lambda _: None)
        if ended.status != 0:
            raise self._error(name, Progress(), ended)
        return ended.stdout.read_text(errors="replace")

    def _run(self, name: str, argv: list[str], on_line: Callable[[str], None]) -> Ended:
        command = [self.binary(), *argv]
        if argv[0] not in ("show", "output", "state", "force-unlock"):
            command[2:2] = ["-input=false"]
        if argv[0] not in ("state", "force-unlock") and "-json" not in argv:
            command[2:2] = ["-no-color"]
        return self._process.run(name, command, cwd=self.copy, env=self.env, on_line=on_line)

    def _shown(self, progress: Progress) -> Callable[[str], None]:
        def show(raw: str) -> None:
            line = progress.line(raw)
            if line:
                self.say(line)

        return show

    def _error(self, name: str, progress: Progress, ended: Ended) -> Exception:
        if ended.interrupted:
            return TerraformUnavailable(
                f"terraform {name} was stopped; what it had done is in the state",
                reason="terraform-interrupted",
                hint="Run the plan task again: it shows what is left to do",
            )
        said = ended.stderr or ended.stdout.read_text(errors="replace")
        return failure(name, progress.errors, said, ended.status, time.time())

    def _unlock(self, lock: LockInfo) -> bool:
        """Release the lock of our own terraform that died here; any other is not ours to touch."""
        if not own_lock(self._earlier, lock.who, lock.created_epoch()):
            return False
        self.say(f"releasing the state lock of our own terraform that died ({lock.text()})")
        self._text("force-unlock", ["force-unlock", "-force", lock.id])
        self._earlier = None
        return True

    def _locking(self) -> list[str]:
        # A lock of our own dead process does not go away by waiting; `_events` releases it.
        return [f"-lock-timeout={0 if self._earlier else self.lock_timeout_s}s"]

    def binary(self) -> str:
        """Path of terraform: the variable TERRAFORM, else PATH. Raises `ToolMissing` also for one that is too old."""
        if self._binary is None:
            named = self.env.get("TERRAFORM") or os.environ.get("TERRAFORM") or "terraform"
            found = shutil.which(named, path=self.env.get("PATH"))
            hint = "Install terraform 1.11 or newer on the worker, or name it in the variable TERRAFORM"
            if found is None:
                raise ToolMissing(f"terraform is not there: {named!r} is not an executable on PATH", hint=hint)
            self.work_dir.mkdir(parents=True, exist_ok=True)
            ended = self._process.run(
                "version", [found, "version", "-json"], cwd=self.work_dir, env=self.env, on_line=lambda _: None
            )
            version = _version(ended.stdout.read_text(errors="replace"))
            if ended.status != 0 or version is None or version < MINIMUM_VERSION:
                shown = ".".join(map(str, version)) if version else "an unknown version"
                raise ToolMissing(f"{found} is {shown}; 1.11 or newer is needed", reason="tool-too-old", hint=hint)
            self._binary = found
        return self._binary

    # --- files ----------------------------------------------------------------------------------------------------

    def _copy_root(self) -> None:
        """A fresh copy of the root. What terraform left in the last one (`errored.tfstate`) is kept."""
        if not any(self.root_dir.glob("*.tf")):
            raise TerraformFailed(
                f"{self.root_dir} holds no terraform root module",
                reason="root-missing",
                hint="Correct terraform.root in the environment's file",
            )
        self.copy.mkdir(parents=True, exist_ok=True)
        os.chmod(self.work_dir, 0o700)
        for old in self.copy.iterdir():
            if not old.name.startswith("errored.tfstate"):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        shutil.copytree(self.root_dir, self.copy, dirs_exist_ok=True, ignore=_NEVER_COPIED)
        if self.plugin_dir is not None:
            # A mirror's unpacked packages have other hashes than those that a lock file holds for the registry's.
            (self.copy / ".terraform.lock.hcl").unlink(missing_ok=True)

    def _push_errored_state(self) -> None:
        """A state that an earlier apply could not upload is the only record of what it made: bring it home first."""
        left = self.copy / "errored.tfstate"
        if not left.is_file():
            return
        self.say("bringing in the state that an earlier apply could not upload")
        try:
            self._text("state-push", ["state", "push", str(left)])
        except TerraformFailed as error:
            raise NeedsHumanError(
                f"An earlier apply left {left}, which the backend refuses: {error.message}",
                layer="terraform",
                reason="state-not-uploaded",
                hint="Compare it with `terraform state pull` and push the right one by hand, then remove the file",
            ) from error
        left.rename(left.with_suffix(f".tfstate.{int(time.time())}"))

    def _steps_of(self, plan_checksum: str) -> int:
        try:
            summary = PlanSummary.from_facts(json.loads(self._summary_file.read_text()))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0
        return summary.steps if summary.checksum == plan_checksum else 0


def find_plugin_dir(env: Mapping[str, str]) -> Path | None:
    """The filesystem mirror to take the AWS provider from: TF_PLUGIN_DIR, else terraform's usual folders, else a
    folder `*tf-plugins` under the usual roots. None: terraform asks the registry."""
    named = env.get("TF_PLUGIN_DIR") or os.environ.get("TF_PLUGIN_DIR")
    if named:
        return Path(named)
    candidates = [Path(folder).expanduser() for folder in _MIRRORS]
    for root in _MIRROR_ROOTS:
        candidates += sorted(Path(root).expanduser().glob("*tf-plugins"))
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    wanted = f"*/hashicorp/aws/*/{platform.system().lower()}_{machine}"
    return next((folder for folder in candidates if next(folder.glob(wanted), None)), None)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if _INHERITED.match(key)}
    config = inherited.get("TF_CLI_CONFIG_FILE")
    if config and not Path(config).is_file():
        # terraform would complain about it before every answer.
        del inherited["TF_CLI_CONFIG_FILE"]
    return inherited | dict(given) | {"TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}


def _write_private(path: Path, text: str) -> None:
    """A file that only its owner can read, from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _version(answer: str) -> tuple[int, ...] | None:
    try:
        text = json.loads(answer)["terraform_version"]
        return tuple(int(part) for part in text.partition("-")[0].split("."))
    except (ValueError, KeyError, TypeError):
        return None
