"""`make rehearse`: brings a rehearsal up, runs the main job in it, and ends it again, whatever happened between.

KEEP=1 in the environment leaves it up and says how to get at it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

import requests

from rehearsal import __main__ as lifecycle
from rehearsal import config, main_job
from rehearsal.airflow_api import AirflowError
from rehearsal.main_job import say


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rehearsal.rehearse", description=__doc__)
    main_job.deploy_arguments(parser)
    arguments = parser.parse_args(argv)
    keep = os.environ.get("KEEP", "") not in ("", "0", "no", "false")
    state = config.state_folder()
    # A terminal that is closed or a job that is cancelled ends us as Ctrl-C does, so that nothing stays behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    began = time.monotonic()
    status = 1
    try:
        say("bringing the rehearsal up")
        status = lifecycle.up(state)
        if status == 0:
            status = main_job.deploy(config.load(state), main_job.deploy_params(arguments), say)
    except KeyboardInterrupt:
        say("stopped")
        status, keep = 130, False
    except (config.NotUp, AirflowError, requests.RequestException) as error:
        say(str(error))
    finally:
        if keep and (state / config.STATE_FILE).exists():
            _how_to_reach(config.load(state))
        else:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it running
            say("ending the rehearsal (KEEP=1 would leave it up)")
            status = lifecycle.down(state) or status
    say(f"{'done' if status == 0 else 'failed'} after {time.monotonic() - began:.0f} s")
    return status


def _how_to_reach(r: config.Rehearsal) -> None:
    say("")
    say(f"Airflow      {r.url('airflow')}   user {r.airflow_user}   password {r.airflow_password}")
    say(f"kubectl      export KUBECONFIG={r.kubeconfig}")
    say("take down    make teardown    (what was deployed, proven gone)")
    say("end          make down        (every process of the rehearsal)")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
