"""`python -m rehearsal.aws`: the AWS stand-in of the rehearsal in REHEARSAL_STATE, until SIGTERM or SIGINT."""

from __future__ import annotations

import logging
import signal
import sys
import threading

from rehearsal import config, faults
from rehearsal.aws import quotas
from rehearsal.aws.eks_cluster import ApiServer
from rehearsal.aws.server import AwsStandIn


def main() -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    logging.getLogger("botocore").setLevel(logging.WARNING)
    r = config.load()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # Where a user's own network would lie between the two.
    api = ApiServer(r.url("gateway"), r.ca, r.service_cidr)
    stand_in = AwsStandIn(api, r.ports["aws"], r.ports["webhook"])
    quotas.extend(lambda: faults.get(r, "few-vcpus"))
    stand_in.start()
    stop.wait()
    stand_in.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
