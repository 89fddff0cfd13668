"""A role in a process of its own, exactly as the command line starts it, on EC2 in memory: ``-m bench.launcher ROLE``."""

import os
import sys
from typing import Any, cast

import aioboto3

from bench import adapter
from bench.ec2_api import Ec2Api

TRANSITION = "BENCH_TRANSITION_SECONDS"
"""How long an instance takes from state to state."""


def main() -> None:
    api = Ec2Api(transition=float(os.environ.get(TRANSITION, "0.2")))
    cast("Any", aioboto3).Session = api.session
    sys.argv = ["cml-workers", "role", sys.argv[1]]
    adapter.command_line()


if __name__ == "__main__":
    main()
