"""`python -m scripts.setup`: makes what is missing, says what it does, and is silent and quick when nothing is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rehearsal import toolbox
from scripts.setup import controlplane, environments, machine
from scripts.setup.shell import SetupError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts.setup", description=__doc__)
    parser.add_argument("--only", choices=("venv", "aiperf", "controlplane"), help="make one part alone")
    only = parser.parse_args(argv).only
    try:
        machine.check()
        if only in (None, "venv"):
            environments.checkout_venv(toolbox.ROOT)
        if only in (None, "aiperf"):
            environments.aiperf_venv(toolbox.ROOT)
        if only in (None, "controlplane"):
            controlplane.build(toolbox.ROOT)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: stopped; what was finished is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
