"""`python -m rehearsal.main_job deploy|teardown`: runs a pipeline through Airflow's API and follows it to its end.

It does what a person at the UI would do: fills the form, watches the tasks, reads the log of the one that waits, and
looks at the result. Plain lines, so that a terminal and a log file show the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import requests

from rehearsal import config, summary
from rehearsal.airflow_api import ENDED, AirflowApi, AirflowError, Task
from rehearsal.config import Rehearsal

POLL_S = 1.0
#: Seconds between two looks at what a running task says: reading a log costs Airflow more than a list of states.
TALK_S = 5.0
PATIENCE_S = 1800.0

#: States that nobody needs to read about: they last a moment and say nothing about the work.
_ASKS = "awaiting_input"
_QUIET = {None, "scheduled", "queued", "restarting", "none"}
_WORDS = {"deferred": "waiting", _ASKS: "asks a person"}

Say = Callable[[str], None]


class Follower:
    """Follows one run: a line for each change of a task, and every few seconds what runs and what it waits for."""

    def __init__(self, api: AirflowApi, dag_id: str, run_id: str, say: Say):
        self.api, self.dag_id, self.run_id, self.say = api, dag_id, run_id, say
        self.began = time.monotonic()
        #: Every state in which each task was seen, in order: the run's own history keeps only the last.
        self.seen: dict[str, list[str]] = {}
        self._shown: dict[str, tuple[str | None, int]] = {}
        self._talked = 0.0
        self._said = ""

    def follow(self, patience_s: float = PATIENCE_S) -> str:
        """Until the run has ended; returns its state, or `timeout` when it has not after `patience_s`."""
        while True:
            state = self.api.run_state(self.dag_id, self.run_id)
            tasks = self.api.tasks(self.dag_id, self.run_id)
            for task in sorted(tasks, key=_by_time):
                self._show(task)
            if state in ("success", "failed"):
                return state
            if time.monotonic() - self.began > patience_s:
                return "timeout"
            if time.monotonic() - self._talked > TALK_S:
                self._talked = time.monotonic()
                self._talk([task for task in tasks if task.state not in (*_QUIET, *ENDED)])
            time.sleep(POLL_S)

    def _show(self, task: Task) -> None:
        key = (task.state, task.try_number)
        if self._shown.get(task.name) == key or task.state in _QUIET:
            return
        self._shown[task.name] = key
        self.seen.setdefault(task.name, []).append(task.state or "")
        words = _WORDS.get(task.state or "", task.state or "")
        # A skipped task has times too, of a moment: they mean nothing.
        took = f"{task.seconds:6.1f} s" if task.seconds is not None and task.state in ("success", "failed") else ""
        tried = f"  try {task.try_number}" if task.try_number > 1 else ""
        self._line(f"{task.name:<22} {words:<16}{took}{tried}".rstrip())
        if task.state == _ASKS:
            self._line(f"  answer it at {self.api.page(self.dag_id, self.run_id, task)}")
        self._talked = time.monotonic()

    def _talk(self, busy: list[Task]) -> None:
        for task in busy:
            since = f"{(datetime.now(UTC) - task.started).total_seconds():.0f} s" if task.started else "at start"
            said = last_words(self.api.log(self.dag_id, self.run_id, task))
            self._line(f"  {task.name} {_WORDS.get(task.state or '', task.state)} for {since}: {said or 'no word yet'}")

    def _line(self, text: str) -> None:
        seconds = int(time.monotonic() - self.began)
        self.say(f"{seconds // 60:2d}:{seconds % 60:02d}  {text}")


def last_words(log: Sequence[str], limit: int = 200) -> str:
    """The last line of a task's log that is about its work."""
    for line in reversed(log):
        text = line.strip()
        if text and not text.startswith("::"):
            return text if len(text) <= limit else text[: limit - 1] + "…"
    return ""


def reason_of(log: Sequence[str]) -> str:
    """The one line that every failing task of ours ends with (layer, reason, what to do), else its last words."""
    ours = [line for line in log if "layer=" in line and "reason=" in line]
    return ours[-1].strip().splitlines()[-1] if ours else last_words(log)


def run(r: Rehearsal, dag_id: str, params: dict[str, object], say: Say = print) -> tuple[str, str]:
    """Trigger a pipeline and follow it. Returns the run's id and its state; names the tasks that failed, and why."""
    api = AirflowApi(r)
    run_id = api.trigger(dag_id, params)
    say(f"{dag_id} {params.get('deployment') or ''} in {params['environment']}: run {run_id}")
    say(f"  {api.base}/dags/{dag_id}/runs/{run_id}")
    state = Follower(api, dag_id, run_id, say).follow()
    # Also in a run that ended well: its last task may run after a failed one.
    explain(r, api, dag_id, run_id, say)
    return run_id, state


def explain(r: Rehearsal, api: AirflowApi, dag_id: str, run_id: str, say: Say) -> None:
    """Name each task that failed by itself, its reason in one line, and where its log lies."""
    failed = [task for task in api.tasks(dag_id, run_id) if task.state == "failed"]
    for task in sorted(failed, key=_by_time):
        say(f"{task.name} failed: {reason_of(api.log(dag_id, run_id, task))}")
        say(f"  its log: {log_path(r, dag_id, run_id, task)}")


def log_path(r: Rehearsal, dag_id: str, run_id: str, task: Task) -> str:
    """The file of the task's latest try, as Airflow's default log_filename_template names it."""
    mapped = f"/map_index={task.map_index}" if task.map_index >= 0 else ""
    folder = f"dag_id={dag_id}/run_id={run_id}/task_id={task.task_id}{mapped}"
    return str(r.logs / "airflow" / folder / f"attempt={max(task.try_number, 1)}.log")


def deploy(r: Rehearsal, params: dict[str, object], say: Say = print) -> int:
    """nim_deploy to its end, then the summary. 0 only when the run succeeded and the ledger says `promoted`."""
    began = time.monotonic()
    run_id, state = run(r, "nim_deploy", params, say)
    api = AirflowApi(r)
    facts = summary.read(r, str(params["environment"]), str(params["deployment"]), run_id)
    for line in summary.table(api, "nim_deploy", run_id, facts, time.monotonic() - began):
        say(line)
    promoted = state == "success" and facts.decision == "promoted"
    if not promoted:
        say(f"not promoted: the run is {state}, the ledger's decision is {facts.decision or 'missing'}")
    return 0 if promoted else 1


def teardown(r: Rehearsal, params: dict[str, object], say: Say = print) -> int:
    """nim_teardown to its end. 0 only when the run succeeded: it proves by itself that nothing is left."""
    run_id, state = run(r, "nim_teardown", params, say)
    for line in summary.stages(AirflowApi(r), "nim_teardown", run_id):
        say(line)
    return 0 if state == "success" else 1


def parser() -> argparse.ArgumentParser:
    """The arguments: the two pipelines' params, under the names that the form shows."""
    parser = argparse.ArgumentParser(prog="python -m rehearsal.main_job", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("deploy", help="roll a deployment out")
    deploy_arguments(one)
    two = commands.add_parser("teardown", help="take everything down and prove it gone")
    two.add_argument("--environment", default="rehearsal")
    two.add_argument("--deployment", default="", help="one deployment alone (with --scope deployment)")
    two.add_argument("--scope", default="platform", choices=("platform", "deployment"))
    return parser


def deploy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--environment", default="rehearsal", help="a file of include/environments/")
    parser.add_argument("--deployment", default="meta-llama3-8b-instruct", help="a file of include/deployments/")
    parser.add_argument("--image-tag", default="", help="instead of the deployment's own")
    parser.add_argument("--skip-benchmark", action="store_true")


def deploy_params(arguments: argparse.Namespace) -> dict[str, object]:
    return {
        "deployment": arguments.deployment,
        "environment": arguments.environment,
        "image_tag": arguments.image_tag,
        "strategy": "replace",
        "skip_benchmark": arguments.skip_benchmark,
    }


def say(text: str) -> None:
    """A line at once, also into a pipe."""
    print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        r = config.load()
        if arguments.command == "deploy":
            return deploy(r, deploy_params(arguments), say)
        params = {name: getattr(arguments, name) for name in ("environment", "deployment", "scope")}
        return teardown(r, params, say)
    except (config.NotUp, AirflowError, requests.RequestException) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("no longer following; the run goes on in Airflow", file=sys.stderr)
        return 130


def _by_time(task: Task) -> tuple[datetime, datetime]:
    never = datetime.max.replace(tzinfo=UTC)
    return (task.ended or never, task.started or never)


if __name__ == "__main__":
    sys.exit(main())
