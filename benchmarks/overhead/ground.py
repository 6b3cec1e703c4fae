"""The ground on which both sides stand: a fresh rehearsal each, and for the script the same objects as ours."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from nim_rollouts.clients.include import Include
from nim_rollouts.clients.terraform import find_plugin_dir
from nim_rollouts.core import manifests
from nim_rollouts.core.names import Names, names_for
from nim_rollouts.core.nimspec import cache_spec, service_spec
from nim_rollouts.core.spec import Deployment, Environment
from rehearsal import config, supervisor
from rehearsal.aws.environment import environment as aws_environment
from rehearsal.config import Rehearsal

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Failed(RuntimeError):
    """One side did not come to its end; the message says where, and where its log lies."""


def say(text: str) -> None:
    """To people, while it goes on."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


@contextmanager
def rehearsal(state: Path) -> Iterator[Rehearsal]:
    """A fresh one, with Airflow; ended whatever happens.

    :raises Failed: it does not come up, or leaves a process behind
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "AIRFLOW"))}
    own = {"REHEARSAL_STATE": str(state), "REHEARSAL_DAGS": str(HERE / "dags"), "PYTHONPATH": str(ROOT)}
    try:
        _lifecycle("up", inherited | own, 300)
        yield config.load(state)
    finally:
        with _deaf():
            _lifecycle("down", inherited | own, 120)
        if left := supervisor.leftovers(state):
            raise Failed(f"processes of the rehearsal in {state} outlived it: {left}")


@contextmanager
def _deaf() -> Iterator[None]:
    """A second Ctrl-C must not leave half of it running."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _lifecycle(verb: str, environment: dict[str, str], seconds: float) -> None:
    command = [sys.executable, "-m", "rehearsal", verb]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        raise Failed(f"`rehearsal {verb}` failed:\n{done.stdout}{done.stderr}")


def prepare(r: Rehearsal, work: Path, environment: Environment, deployment: Deployment) -> dict[str, str]:
    """Fill the script's work folder, before its clock runs; returns the script's environment.

    The NIMCache and the NIMService have our specs under plain names, so that probes and resources are the same; the
    benchmark is our Job with our program.
    """
    include = Include(ROOT / "include")
    work.mkdir(mode=0o700)
    shutil.copytree(include.path(environment.terraform.root), work / "root",
                    ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*"))  # fmt: skip
    state = environment.terraform.state
    backend = {"bucket": state.bucket, "key": state.key, "region": environment.region}
    (work / "backend.tfbackend.json").write_text(json.dumps(backend))
    (work / "variables.tfvars.json").write_text(json.dumps(dict(environment.terraform.variables)))
    _write_manifests(work / "manifests", include, environment, deployment)
    addons = {one.name: one for one in environment.addons}
    addon, karpenter = addons["nim-operator"], addons["karpenter"]
    plugins = find_plugin_dir(os.environ)
    return {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ},
        **aws_environment(r.url("aws")),
        **({"TF_PLUGIN_DIR": str(plugins)} if plugins else {}),
        "KUBECONFIG": str(r.kubeconfig),
        "HELM": str(r.helm),
        "CHART": str(ROOT / addon.chart),
        "VALUES": str(include.path(str(addon.values))),
        "KARPENTER_CHART": str(ROOT / karpenter.chart),
        "KARPENTER_VALUES": str(include.path(str(karpenter.values))),
        "OPERATOR": addon.requires.deployments[0],
        "NGC_URL": r.url("ngc"),
        "NGC_KEY_FILE": str(r.ngc_key_file),
        "REPOSITORY": deployment.image.repository,
        "TAG": deployment.image.tag,
        "MODEL": deployment.model,
        "NAME": deployment.name,
        "NAMESPACE": deployment.namespace,
        "NO_PROXY": "127.0.0.1,localhost",
    }


def _write_manifests(folder: Path, include: Include, environment: Environment, deployment: Deployment) -> None:
    folder.mkdir()
    names = names_for(deployment, "by-hand")
    plain = Names(**{**vars(names), "cache": deployment.name, "service": deployment.name})
    templates = include.templates()
    context = manifests.Context(templates, plain, deployment.name, environment.name, "by-hand", generation=1)
    cache, service = manifests.nim_cache(context, deployment), manifests.nim_service(context, deployment)
    cache["spec"], service["spec"] = cache_spec(deployment), service_spec(deployment, plain.cache)
    config_map, job = manifests.benchmark(context, deployment, include.benchmark_files())
    for obj in (cache, service, config_map, job):
        # The marks of a rollout of ours: nobody would write them by hand.
        obj["metadata"] = {key: obj["metadata"][key] for key in ("name", "namespace")}
    job["metadata"]["labels"] = {"by-hand": "benchmark"}
    for file in ("namespace.yaml", "storage-class.yaml"):
        (folder / file).write_text(templates[file])
    (folder / "node-pools").mkdir()
    for pool in environment.node_pools:
        file = f"node-pools/{pool}.yaml"
        (folder / file).write_text(templates[file])
    for name, objects in {"nimcache": [cache], "nimservice": [service], "benchmark": [config_map, job]}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump_all(objects))


def run_script(work: Path, environment: Mapping[str, str], patience_s: float) -> list[str]:
    """by_hand.sh to its end; the lines of its steps. Whatever it has started ends with it.

    :raises Failed: it failed or took longer than `patience_s`
    """
    log = work / "by_hand.log"
    with log.open("wb") as out:
        command = [str(HERE / "by_hand.sh"), str(work)]
        process = subprocess.Popen(
            command, env=dict(environment), cwd=work, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
        try:
            status: int | str = process.wait(patience_s)
        except subprocess.TimeoutExpired:
            status = f"no end after {patience_s:.0f} s"
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                _end(process, number)
    if status != 0:
        raise Failed(f"by_hand.sh: {status}. Its log ends with\n{_tail(log)}")
    return (work / "steps").read_text().splitlines()


def _end(process: subprocess.Popen[Any], number: signal.Signals) -> None:
    """A signal to the whole group, which the leader's end does not empty."""
    try:
        os.killpg(process.pid, number)
        process.wait(10)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-lines:])
