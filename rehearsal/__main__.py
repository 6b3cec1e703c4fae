"""The rehearsal's command line: up, down, status, restart, kubeconfig, fault."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from rehearsal import config, own_operator, supervisor, toolbox


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rehearsal", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring the rehearsal up and wait until every part works")
    up.add_argument("--without-airflow", action="store_true", help="the cluster and the cloud alone")
    commands.add_parser("down", help="end every process that was started")
    commands.add_parser("status", help="every part, its state and its log")
    again = commands.add_parser("restart", help="end one part, start it again, and wait until it works")
    again.add_argument("part", help="as `status` calls it, such as kube-apiserver")
    again.add_argument("--away", type=float, default=0.0, metavar="S", help="seconds between its end and its start")
    again.add_argument("--kill", action="store_true", help="end it by SIGKILL")
    commands.add_parser("kubeconfig", help="print the path of the admin's kubeconfig")
    commands.add_parser("fault", help="order a fault at a stand-in: fault NAME [key=value ...], --list, --clear")
    return parser


def _connect(state: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(supervisor.socket_name(state))
    except OSError:
        connection.close()
        return None
    return connection


def _table(state: Path) -> dict:  # type: ignore[type-arg]
    try:
        return dict(json.loads((state / supervisor.PARTS_FILE).read_text()))
    except (FileNotFoundError, ValueError):
        return {"all_ready": False, "seconds": 0, "parts": {}}


def up(state: Path, *, with_airflow: bool = True) -> int:
    """Bring it up, or find it up. 0 once every part is ready; 1 with the part and its log named when one fails."""
    # Looked for first: an error here should not be searched in a supervisor's log.
    toolbox.controlplane_binary()
    toolbox.aiperf_executable()
    own = own_operator.named(os.environ)
    process = None
    running = _connect(state)
    if running:
        running.close()
    else:
        if own.in_words:
            print(f"  the NIM Operator: {own.in_words}", flush=True)
        state.mkdir(parents=True, exist_ok=True)
        for name in (supervisor.PARTS_FILE, config.STATE_FILE):
            (state / name).unlink(missing_ok=True)
        command = [sys.executable, "-m", "rehearsal.supervisor", str(state), "airflow" if with_airflow else "bare"]
        with (state / "supervisor.log").open("wb") as out:
            process = subprocess.Popen(
                command, cwd=config.ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
    try:
        return _follow(state, process)
    except KeyboardInterrupt:
        print("interrupted: ending what was started", flush=True)
        down(state)
        return 130


def _follow(state: Path, process: subprocess.Popen[bytes] | None) -> int:
    told: set[str] = set()
    while True:
        table = _table(state)
        for name, part in table["parts"].items():
            if part["state"] in ("ready", "done") and name not in told:
                told.add(name)
                print(f"  {name:<24} {part['state']:<6} {part['seconds']:>5.1f} s", flush=True)
        failed = {n: p for n, p in table["parts"].items() if p["state"] == "failed"}
        if failed:
            for name, part in failed.items():
                print(f"{name} {part['why']}. Its log: {part['log']}", file=sys.stderr)
                _print_tail(Path(part["log"]))
            if process:
                process.wait(30)
            return 1
        if table["all_ready"]:
            print(f"up: {len(table['parts'])} parts in {table['seconds']} s, state in {state}", flush=True)
            return 0
        ended = process is not None and process.poll() is not None
        if ended or (process is None and not _alive(state)):
            log = state / "supervisor.log"
            print(f"the supervisor ended before the rehearsal was up. Its log: {log}", file=sys.stderr)
            _print_tail(log)
            return 1
        time.sleep(0.1)


def _alive(state: Path) -> bool:
    connection = _connect(state)
    if connection:
        connection.close()
    return connection is not None


def _print_tail(log: Path, lines: int = 15) -> None:
    with contextlib.suppress(OSError):
        for line in log.read_text(errors="replace").splitlines()[-lines:]:
            print(f"    {line}", file=sys.stderr)


def down(state: Path) -> int:
    """End the rehearsal of this state folder. 0 when nothing of it runs any more."""
    connection = _connect(state)
    if connection:
        with connection:
            connection.sendall(b"stop\n")
            connection.settimeout(60)
            with contextlib.suppress(OSError):
                while connection.recv(1):  # closed by the supervisor's end
                    pass
    for number in (15, 9):
        pids = supervisor.leftovers(state)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + 5
        while pids and supervisor.leftovers(state) and time.monotonic() < deadline:
            time.sleep(0.1)
    left = supervisor.leftovers(state)
    if left:
        print(f"still running: {left}", file=sys.stderr)
        return 1
    print("down: no process of the rehearsal is left" if connection else "nothing was up", flush=True)
    return 0


def restart(state: Path, part: str, away_s: float, *, kill: bool) -> int:
    """Restart one part. 0 once it is ready again, 1 with what is wrong, 3 when nothing is up."""
    connection = _connect(state)
    if connection is None:
        print("not up")
        return 3
    with connection:
        connection.sendall(f"restart {part} {away_s} {'kill' if kill else 'term'}\n".encode())
        connection.settimeout(away_s + 240)  # the most patient part has 180 s to become ready
        said = connection.recv(4096).decode().strip()
    if said != "ok":
        print(said or "the supervisor ended meanwhile", file=sys.stderr)
        return 1
    print(f"{part} is back")
    return 0


def status(state: Path) -> int:
    if not _alive(state):
        print("not up")
        return 3
    for name, part in _table(state)["parts"].items():
        detail = part.get("why") or (f"pid {part['pid']}" if "pid" in part else "")
        print(f"{name:<24} {part['state']:<9} {detail:<12} {part['log']}")
    return 0 if _table(state)["all_ready"] else 1


def main() -> int:
    # What follows `fault` is read by the faults' own parser: argparse takes no option as a rest's first word.
    rest = sys.argv[2:] if sys.argv[1:2] == ["fault"] else []
    arguments = _parser().parse_args(sys.argv[1:2] if rest else None)
    state = config.state_folder()
    try:
        if arguments.command == "up":
            return up(state, with_airflow=not arguments.without_airflow)
        if arguments.command == "down":
            return down(state)
        if arguments.command == "status":
            return status(state)
        if arguments.command == "restart":
            return restart(state, arguments.part, arguments.away, kill=arguments.kill)
        if arguments.command == "kubeconfig":
            print(config.load(state).kubeconfig)
            return 0
        from rehearsal import fault_command

        return fault_command.main(rest)
    except (config.NotUp, toolbox.ToolNotReady) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
