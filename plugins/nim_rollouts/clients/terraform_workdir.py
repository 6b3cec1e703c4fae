"""The work folder of one root module: a copy of the root, terraform's data, private files, and what is initialised.

Nothing is ever written into the root itself. The folder outlives the task, so that the next one on this worker needs no
`init` while nothing that counts has changed, and finds what a dead one left.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nim_rollouts.core.errors import TerraformFailed

#: Variables of the worker that terraform may see. Airflow's own (connections, keys) are not among them.
_INHERITED = re.compile(
    r"^(PATH|HOME|USER|LOGNAME|LANG|LC_ALL|TMPDIR|TEMP|SSL_CERT_FILE|SSL_CERT_DIR|TF_PLUGIN_CACHE_DIR|TF_CLI_CONFIG_FILE"
    r"|AWS_.*|(?i:https?_proxy|no_proxy))$"
)
#: With keys that are given none of these may be left of the worker's: a token is of its own keys alone, and a profile
#: goes before keys.
_OF_OTHER_KEYS = ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE")
_NEVER_COPIED = shutil.ignore_patterns(".terraform", "*.tfstate", "*.tfstate.*", "*.tfplan", "crash.log")
LOCK_FILE = ".terraform.lock.hcl"
_ERRORED = "errored.tfstate"


class WorkDir:
    """Files of one root module's work.

    :param root_dir: the root module
    :param path: folder of this root and this state alone
    """

    def __init__(self, root_dir: Path, path: Path) -> None:
        self.root_dir, self.path = root_dir, path
        self.copy = path / "root"
        self.data = path / "data"
        self.errored = self.copy / _ERRORED
        self._mark = path / "initialised.json"

    def refresh(self, fingerprint: str, *, mirror: bool, lock_file: bytes | None) -> bool:
        """Make the copy what the root is; True if it needs no `init`. What terraform left in the last one
        (`errored.tfstate`) is kept, and so is the lock file that an `init` of this fingerprint has written.

        :param fingerprint: of what `init` depends on, see `fingerprint`
        :param mirror: providers come from a filesystem mirror
        :param lock_file: the provider versions to use, instead of the root's or this folder's own
        """
        self.copy.mkdir(parents=True, exist_ok=True)
        os.chmod(self.path, 0o700)
        ready = self._is_initialised(fingerprint)
        kept = self.lock_file() if ready and lock_file is None else lock_file
        for old in self.copy.iterdir():
            if not old.name.startswith(_ERRORED):
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        shutil.copytree(self.root_dir, self.copy, dirs_exist_ok=True, ignore=_NEVER_COPIED)
        lock = self.copy / LOCK_FILE
        if kept is not None:
            lock.unlink(missing_ok=True)
            lock.write_bytes(kept)
        elif mirror:
            # A mirror's unpacked packages have other hashes than those that a lock file holds for the registry's.
            lock.unlink(missing_ok=True)
        return ready and self._is_initialised(fingerprint)

    def lock_file(self) -> bytes | None:
        """The provider versions and hashes that the last `init` here has chosen."""
        try:
            return (self.copy / LOCK_FILE).read_bytes()
        except FileNotFoundError:
            return None

    def fingerprint(self, **more: Any) -> str:
        """Of what decides whether `init` has something to do: the root's files and `more`.

        :raises TerraformFailed: there is no root module
        """
        if not any(self.root_dir.glob("*.tf")):
            raise TerraformFailed(
                f"{self.root_dir} holds no terraform root module",
                reason="root-missing",
                hint="Correct terraform.root in the environment's file",
            )
        digest = hashlib.sha256(json.dumps(more, sort_keys=True, default=str).encode())
        for folder, folders, names in os.walk(self.root_dir, followlinks=True):
            ignored = _NEVER_COPIED(folder, [*folders, *names])
            folders[:] = sorted(name for name in folders if name not in ignored)
            for name in sorted(name for name in names if name not in ignored):
                file = Path(folder) / name
                digest.update(f"\n{file.relative_to(self.root_dir).as_posix()}\n".encode() + file.read_bytes())
        return digest.hexdigest()

    def _is_initialised(self, fingerprint: str) -> bool:
        """True if an `init` of this fingerprint ended well here, and its lock file is still the same."""
        try:
            mark = json.loads(self._mark.read_text())
        except (FileNotFoundError, ValueError):
            return False
        lock = hashlib.sha256(self.lock_file() or b"").hexdigest()
        # Of a mirror the providers are links into it.
        providers = list((self.data / "providers").glob("*/*/*/*/*"))
        whole = mark["lock"] == lock and bool(providers) and all(one.exists() for one in providers)
        return whole and bool(mark["fingerprint"] == fingerprint)

    def initialising(self) -> None:
        """An `init` begins: until it has ended well nothing is initialised."""
        self._mark.unlink(missing_ok=True)

    def initialised(self, fingerprint: str) -> None:
        """An `init` has ended well."""
        lock = hashlib.sha256(self.lock_file() or b"").hexdigest()
        write_private(self._mark, json.dumps({"fingerprint": fingerprint, "lock": lock}))


_MIRRORS = ("~/.terraform.d/plugins", "/usr/share/terraform/plugins", "/usr/local/share/terraform/plugins")
_MIRROR_ROOTS = ("/opt", "/usr/share", "/usr/local/share", "/var/lib", "~")


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


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """terraform's environment: `given`, and what it may see of the worker's own."""
    inherited = {key: value for key, value in os.environ.items() if _INHERITED.match(key)}
    if "AWS_ACCESS_KEY_ID" in given:
        for name in _OF_OTHER_KEYS:
            inherited.pop(name, None)
    config = inherited.get("TF_CLI_CONFIG_FILE")
    if config and not Path(config).is_file():
        # terraform would complain about it before every answer.
        del inherited["TF_CLI_CONFIG_FILE"]
    return inherited | dict(given) | {"TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}


def write_private(path: Path, content: str | bytes) -> None:
    """A file that only its owner can read, from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
