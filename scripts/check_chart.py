"""Would a chart install with these values? `python -m scripts.check_chart FOLDER_OR_TGZ [VALUES]`.

Keys that the chart does not know, rendering, and, where a rehearsal is up, a dry run of every object on its API
server. Ends with 1 and one line a problem.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "plugins"))

from nim_rollouts.clients.access import ClusterAccess  # noqa: E402
from nim_rollouts.clients.cluster import Cluster  # noqa: E402
from nim_rollouts.clients.helm_check import Findings, check  # noqa: E402
from nim_rollouts.clients.helm_process import HelmProcess, find_binary  # noqa: E402
from nim_rollouts.core.errors import NimRolloutsError, ToolMissing  # noqa: E402
from rehearsal import config  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.check_chart", description=__doc__)
    parser.add_argument("chart", type=Path, help="the chart: a folder, or the .tgz of `helm pull`")
    parser.add_argument("values", type=Path, nargs="?", help="a values file, such as include/helm/nim-operator.yaml")
    parser.add_argument("--release", default="check-chart")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="a.b", help="a value that is right all the same"
    )
    asked = parser.parse_args(arguments)
    for path in (asked.chart, asked.values):
        if path is not None and not path.exists():
            parser.error(f"{path} does not exist")
    try:
        rehearsal = config.load()
    except config.NotUp:
        rehearsal = None
    cluster = None
    if rehearsal:
        access = ClusterAccess(rehearsal.url("apiserver"), rehearsal.ca.read_text(), lambda: rehearsal.admin_token)
        cluster = Cluster(access)
    try:
        findings = check(
            HelmProcess(_binary(rehearsal)),
            asked.chart,
            asked.values,
            release=asked.release,
            cluster=cluster,
            allowed=asked.allow,
        )
    except NimRolloutsError as error:
        print(error, file=sys.stderr)
        return 2
    return _tell(findings, with_cluster=cluster is not None)


def _binary(rehearsal: config.Rehearsal | None) -> str:
    try:
        return find_binary()
    except ToolMissing:
        if rehearsal is None:
            raise
        return str(rehearsal.helm)


def _tell(findings: Findings, *, with_cluster: bool) -> int:
    for problem in findings.problems:
        print(f"problem: {problem}")
    asked = "accepted by the API server" if with_cluster else "not shown to an API server: no rehearsal is up"
    counted = f"{len(findings.objects)} objects"
    print(f"{len(findings.problems)} problems" if findings.problems else f"it would install: {counted}, {asked}")
    return 1 if findings.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
