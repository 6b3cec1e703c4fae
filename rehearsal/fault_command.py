"""`python -m rehearsal fault`: faults ordered, shown and cleared from a command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rehearsal import faults


def _show(known: Mapping[str, Mapping[str, Any]]) -> str:
    if not known:
        return "no fault is active"
    return "\n".join(" ".join([name, *(f"{k}={v}" for k, v in s.items())]) for name, s in known.items())


def main(argv: Sequence[str] | None = None, r: faults.State | None = None) -> int:
    """``fault NAME [key=value ...]``, ``fault --list``, ``fault --clear [NAME]``, ``fault`` (shows active ones).

    Returns an exit code: 0, or 2 for an order that was refused (its reason goes to stderr).
    """
    parser = argparse.ArgumentParser(prog="python -m rehearsal fault", description="order faults at the stand-ins")
    parser.add_argument("name", nargs="?", help="the fault")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--list", action="store_true", help="all faults, their settings, and which are active")
    parser.add_argument("--clear", action="store_true", help="end the named fault, or all")
    arguments = parser.parse_args(argv)
    if r is None:
        from rehearsal import config

        try:
            r = config.load()
        except config.NotUp as error:
            if not arguments.list:
                raise
            print(f"{faults.describe()}\n\n{error}")
            return 0
    try:
        if arguments.list:
            print(faults.describe() + "\n\nactive:\n" + _show(faults.active(r)))
        elif arguments.clear:
            if arguments.settings:
                raise faults.FaultError("--clear takes the name of one fault, or nothing")
            ended = faults.clear(r, arguments.name)
            print("cleared: " + (", ".join(ended) or "none was active"))
        elif arguments.name is None:
            print(_show(faults.active(r)))
        else:
            pairs = [item.partition("=") for item in arguments.settings]
            wrong = [key for key, sign, _ in pairs if not sign or not key]
            if wrong:
                raise faults.FaultError(f"settings are given as key=value, not {wrong[0]!r}")
            print("ordered: " + _show({arguments.name: faults.order(r, arguments.name, **{k: v for k, _, v in pairs})}))
    except faults.FaultError as error:
        print(f"fault: {error}", file=sys.stderr)
        return 2
    return 0
