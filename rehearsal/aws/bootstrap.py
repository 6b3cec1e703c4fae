"""`python -m rehearsal.aws.bootstrap`: what a person does once per account, with the product's own bootstrap module:
`terraform apply` of the buckets for state and ledger, state kept locally (here: in the rehearsal's folder)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from rehearsal.config import load

# Where a package, an image or a user puts a filesystem mirror of terraform's providers.
_MIRROR_PARENTS = ("/opt", "/usr/share", "/usr/local/share", "/usr/lib", "/var/lib", "~", "~/.terraform.d")
_MIRROR_NAMES = ("tf-plugins", "plugins", "terraform/plugins")


def plugin_dir() -> Path | None:
    """The filesystem mirror to take providers from: TF_PLUGIN_DIR, else a usual folder; None: terraform downloads."""
    named = os.environ.get("TF_PLUGIN_DIR")
    if named:
        return Path(named)
    for parent in _MIRROR_PARENTS:
        for name in _MIRROR_NAMES:
            folder = Path(parent).expanduser() / name
            if next(folder.glob("*/hashicorp/aws"), None):
                return folder
    return None


def main() -> int:
    r = load()
    work = r.path("bootstrap")
    shutil.copytree(r.root / "include" / "terraform" / "bootstrap", work, dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*"))  # fmt: skip
    environment = yaml.safe_load((r.root / "include" / "environments" / "rehearsal.yaml").read_text())
    variables = {
        "region": environment["region"],
        "state_bucket": environment["terraform"]["state"]["bucket"],
        "ledger_bucket": environment["store"]["bucket"],
        # No lifecycle rules: the provider watches new ones for a minute before it calls them made.
        "keep_old_versions_days": 0,
    }
    (work / "terraform.tfvars.json").write_text(json.dumps(variables))
    mirror = plugin_dir()
    env = os.environ | {"TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}
    init = ["terraform", "init", "-input=false", "-no-color"] + ([f"-plugin-dir={mirror}"] if mirror else [])
    for command in (init, ["terraform", "apply", "-input=false", "-no-color", "-auto-approve"]):
        status = subprocess.run(command, cwd=work, env=env, check=False).returncode
        if status:
            print(f"{' '.join(command[:2])} ended with status {status}", file=sys.stderr)
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
