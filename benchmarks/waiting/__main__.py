"""`make bench-waiting`: N waits of ours and N of a stock deferrable, one after the other, on one real API server.

Both run in Airflow's own TriggerRunner in a process of its own, under its own supervisor (see triggerer.py for what
stands for the database). Ours wait for NIMServices with Deployment, ReplicaSet and Pod of recorded size; the stock one
is the cncf-kubernetes provider's KubernetesJobTrigger, unmodified, with its default poll interval, on Jobs. With
`--side nothing`: what as many triggers take that wait for nothing. README.md says why these, and what is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from benchmarks.waiting.objects import NAMESPACE, Jobs, Services, Writer, prepare
from nim_rollouts.clients.access import ClusterAccess
from rehearsal import supervisor, toolbox

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"etcd", "kube-apiserver"}
_RACE_S = 8.0
SIDES = ("stock", "ours", "nothing")
GOALS = {"requests_per_minute": 10.0, "latency_p99_s": 1.0, "memory_per_wait_kb": 100.0, "lag_max_s": 0.2}


class Plane:
    """etcd and an API server, with nobody else on it: every request is a wait's or the API server's own."""

    def __init__(self, state: Path) -> None:
        toolbox.aiperf_executable = lambda: Path("/nonexistent")  # type: ignore[assignment]  # not needed here
        self.r, self._lock = supervisor.prepare(state, with_airflow=False)
        self._supervisor = supervisor.Supervisor(self.r)
        self._supervisor.parts = [part for part in self._supervisor.parts if part.name in PARTS]

    def start(self) -> None:
        while not self._supervisor.all_ready:
            self._supervisor._start_what_can_start()
            self._supervisor._look()
            if self._supervisor.failed:
                raise SystemExit(f"the control plane does not start: {self._supervisor.failed}")
            time.sleep(0.1)

    def close(self) -> None:
        self._supervisor.end()
        self._lock.close()

    @property
    def access(self) -> ClusterAccess:
        return ClusterAccess(self.r.url("apiserver"), self.r.ca.read_text(), lambda: self.r.admin_token)


def requests(writer: Writer, resources: Collection[str] = ()) -> float:
    """Requests so far from the API server's own metrics: those that have ended and those that still run (a watch is
    counted by apiserver_request_total when it ends). Reading the metrics is left out.

    :param resources: only requests on these; none: on all, the API server's own among them
    """
    total = 0.0
    for line in writer.rest.text("GET", "/metrics").splitlines():
        if line.startswith(("apiserver_request_total{", "apiserver_longrunning_requests{")):
            resource = line.partition(',resource="')[2].partition('"')[0]
            if resource and (not resources or resource in resources):
                total += float(line.rsplit(" ", 1)[1])
    return total


def kubeconfig(plane: Plane, folder: Path) -> str:
    """One with a static token, the cheapest way in that the stock hook knows."""
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": {
            "server": plane.access.endpoint, "certificate-authority": str(plane.r.ca)}}],
        "users": [{"name": "it", "user": {"token": plane.r.admin_token}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it", "namespace": NAMESPACE}}],
    }  # fmt: skip
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return str(path)


class Triggerer:
    """A measured triggerer: its process, and what it and its probe have written."""

    def __init__(self, folder: Path, given: dict[str, Any]) -> None:
        self.folder = folder
        (folder / "logs").mkdir(parents=True)
        (folder / "spec.json").write_text(json.dumps(given))
        environment = {
            **os.environ,
            "WAITING_SPEC": str(folder / "spec.json"),
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__FERNET_KEY": "",
            "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(
                {"conn_type": "kubernetes", "extra": {"kube_config_path": given["kubeconfig"]}}
            ),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}",
        }
        with (folder / "triggerer.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.waiting.triggerer"],
                cwd=ROOT, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def touch(self, name: str) -> None:
        (self.folder / name).touch()

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def rss(self) -> int:
        """After a collection of garbage: the median of three seconds."""
        self.touch("collect")
        self.until(lambda: not (self.folder / "collect").exists(), 60, why="the probe does not answer")
        seen = len(self.lines("probe.jsonl"))
        self.until(lambda: len(self.lines("probe.jsonl")) >= seen + 4, 120, why="the probe does not answer")
        return int(statistics.median(one["rss"] for one in self.lines("probe.jsonl")[-3:]))

    def until(self, check: Callable[[], bool], within_s: float, *, why: str | None = None) -> None:
        """Waits for a condition, at most so long.

        :param why: what it means when it does not come (an error); None: it need not
        :raises SystemExit: also as soon as the triggerer ends or one of its triggers fails
        """
        deadline = time.monotonic() + within_s
        while not check():
            self.check()
            if time.monotonic() > deadline:
                if why is None:
                    return
                raise SystemExit(f"{why}; {self._tail}")
            time.sleep(0.25)

    def pause(self, seconds: float) -> None:
        """Lets time pass in which nothing may fail."""
        self.until(lambda: False, seconds)

    def check(self) -> None:
        """Nothing, while all is well."""
        if self.process.poll() is not None:
            raise SystemExit(f"the triggerer has ended; {self._tail}")
        failures = self.folder / "failures.txt"
        if failures.exists():
            raise SystemExit(f"a trigger has failed: {failures.read_text()[:3000]}")

    @property
    def _tail(self) -> str:
        return "the triggerer's log ends with\n" + (self.folder / "triggerer.log").read_text()[-3000:]

    def close(self) -> None:
        self.touch("stop")
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def started(triggerer: Triggerer, count: int) -> bool:
    """True once that many waits have begun (each has a log of its own)."""
    return sum(1 for one in (triggerer.folder / "logs").iterdir()) >= count


def measure(side: str, plane: Plane, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one side."""
    load = os.getloadavg()[0]
    writer = Writer(plane.access)
    kinds: Services | Jobs = Jobs(writer) if side == "stock" else Services(writer)
    # One more: the wait that has everything loaded before memory is measured.
    names = [f"{side}-{number:05d}" for number in range(options.waits + 1)]
    made = names if side != "nothing" else []
    say(f"{side}: making {len(made)} {kinds.kind}s")
    writer.many(kinds.make, made[:1])
    given = {
        "side": side, "names": names, "namespace": NAMESPACE, "image": kinds.image, "endpoint": plane.access.endpoint,
        "ca": plane.access.ca_pem, "token": plane.r.admin_token, "kubeconfig": kubeconfig(plane, folder),
        "begin_rate": options.begin_rate,
    }  # fmt: skip
    first = requests(writer, kinds.resources)
    triggerer = Triggerer(folder / side, given)
    try:
        triggerer.until(lambda: started(triggerer, 1), 120, why="the first wait does not begin")
        triggerer.pause(3)
        first = requests(writer, kinds.resources) - first
        before = triggerer.rss()
        writer.many(kinds.make, made[1:])
        second = requests(writer, kinds.resources)
        triggerer.touch("go")
        began = time.monotonic()
        triggerer.until(lambda: started(triggerer, len(names)), 300, why="not all waits begin")
        say(f"{side}: {options.waits} waits began within {time.monotonic() - began:.0f} s")
        # Older than the race window, and all that comes with the start is over.
        triggerer.pause(_RACE_S + 2)
        begin_requests = first + requests(writer, kinds.resources) - second
        mark, ran = time.time(), triggerer.lines("probe.jsonl")[-1]["cpu"]
        at, in_all, of_waits = time.monotonic(), requests(writer), requests(writer, kinds.resources)
        triggerer.pause(options.window if made else 10)
        minutes = (time.monotonic() - at) / 60
        per_minute = (requests(writer, kinds.resources) - of_waits) / minutes
        in_all_per_minute = (requests(writer) - in_all) / minutes
        busy = (triggerer.lines("probe.jsonl")[-1]["cpu"] - ran) / minutes / 60
        after = triggerer.rss()
        say(f"{side}: {per_minute:.1f} requests/min; ending the waits, {options.rate:.0f} a second")
        ended = end_all(kinds, made[1:], options.rate, triggerer.check)
        # Two rounds of polling are enough for one that is not overloaded; an overloaded one is given more.
        triggerer.until(lambda: len(triggerer.lines("fires.jsonl")) >= len(ended), options.patience)
        fires = {names[one["id"] - 1]: one for one in triggerer.lines("fires.jsonl") if one["id"]}
        samples = [one for one in triggerer.lines("probe.jsonl") if one["at"] > mark]
    finally:
        triggerer.close()
    wrong = next((one["event"] for one in fires.values() if not kinds.is_right(one["event"])), None)
    if wrong is not None:
        raise SystemExit(f"{side}: a wait ended otherwise than it was to: {wrong}")
    latencies = sorted(fires[name]["at"] - at for name, at in ended.items() if name in fires)
    worst = max(samples, key=lambda one: float(one["worst"]))
    return {
        "waits": options.waits,
        "fired": len(latencies),
        "requests_to_begin": round(begin_requests),
        "requests_per_minute": round(per_minute, 1),
        "requests_per_minute_with_the_servers_own": round(in_all_per_minute, 1),
        "latency_p50_s": quantile(latencies, 0.5),
        "latency_p99_s": quantile(latencies, 0.99),
        "memory_per_wait_kb": round((after - before) / options.waits / 1024, 1),
        "lag_p99_s": quantile(sorted(value for one in samples for value in one["late"]), 0.99),
        "lag_max_s": round(worst["worst"], 3),
        "lag_max_own_cpu_s": round(worst["own"], 3),
        "cpu_share_waiting": round(busy, 3),
        "load_before": round(load, 1),
        "load_after": round(os.getloadavg()[0], 1),
    }


def end_all(kinds: Services | Jobs, names: list[str], rate: float, check: Callable[[], None]) -> dict[str, float]:
    """Name -> the moment before the write that ends its wait."""
    ended = {}
    began = time.monotonic()
    for count, name in enumerate(names):
        time.sleep(max(0.0, began + count / rate - time.monotonic()))
        check()
        ended[name] = time.time()
        kinds.end(name)
    return ended


def idle(writer: Writer, seconds: float) -> float:
    """Requests a minute that the API server makes of itself."""
    before, at = requests(writer), time.monotonic()
    time.sleep(seconds)
    return (requests(writer) - before) / (time.monotonic() - at) * 60


def quantile(values: list[float], share: float) -> float | None:
    """Of sorted values; None when there are none."""
    return round(values[min(len(values) - 1, int(len(values) * share))], 3) if values else None


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def table(sides: dict[str, dict[str, Any]]) -> str:
    rows = {
        "fired": "fired",
        "requests/min, all waits": "requests_per_minute",
        " with the API server's own": "requests_per_minute_with_the_servers_own",
        "requests to begin": "requests_to_begin",
        "event to fire, p50 [s]": "latency_p50_s",
        "event to fire, p99 [s]": "latency_p99_s",
        "memory per wait [KB]": "memory_per_wait_kb",
        "loop lag, p99 [s]": "lag_p99_s",
        "loop lag, max [s]": "lag_max_s",
        " of it on the CPU itself [s]": "lag_max_own_cpu_s",
        "CPUs used while waiting": "cpu_share_waiting",
        "load of the machine before": "load_before",
        "load of the machine after": "load_after",
    }
    lines = [f"{'':30}" + "".join(f"{side:>12}" for side in sides) + f"{'goal (ours)':>14}"]
    for title, key in rows.items():
        goal = f"{GOALS[key]:g}" if key in GOALS else ""
        lines.append(f"{title:30}" + "".join(f"{shown(one[key]):>12}" for one in sides.values()) + f"{goal:>14}")
    return "\n".join(lines)


def shown(value: Any) -> str:
    return "-" if value is None else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-waiting ARGS=...", description=__doc__)
    parser.add_argument("--waits", type=int, default=1000)
    parser.add_argument("--window", type=float, default=60.0, help="seconds over which requests are counted")
    parser.add_argument("--begin-rate", type=float, default=10.0, help="waits begun a second")
    parser.add_argument("--rate", type=float, default=25.0, help="waits ended a second")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds for the last ones to fire")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds over which the API server is looked at alone")
    parser.add_argument("--side", choices=SIDES, action="append", help="only these sides (default: stock and ours)")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and samples")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="nim-rollouts-waiting-"))
    plane = Plane(folder / "plane")
    sides: dict[str, dict[str, Any]] = {}
    try:
        plane.start()
        writer = Writer(plane.access)
        prepare(writer, ROOT / "rehearsal" / "charts" / "k8s-nim-operator" / "crds")
        time.sleep(10)  # the API server's own start
        own = idle(writer, options.idle)
        say(f"the API server alone: {own:.1f} requests/min of its own (not subtracted)")
        for side in options.side or SIDES[:2]:
            sides[side] = measure(side, plane, folder, options)
    finally:
        plane.close()
        if options.keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(table(sides))
    ours = sides.get("ours", {})
    met = {key: ours.get(key) is not None and ours[key] <= goal for key, goal in GOALS.items()}
    print(
        json.dumps({"benchmark": "waiting", **sides, "api_server_own_requests_per_minute": round(own, 1), "goals": met})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
