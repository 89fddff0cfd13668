"""What a process sets up for itself: its log lines and its garbage collection."""

import json
import subprocess
import sys

COLLECTS_SELDOM = """
import gc
from cml_workers.process.garbage import YOUNG, collect_seldom
collect_seldom()
assert gc.isenabled()
assert gc.get_threshold()[0] == YOUNG
assert gc.get_freeze_count() > 1000
cycle = []
cycle.append(cycle)
del cycle
assert gc.collect() > 0
"""

LOGS = r"""
from uuid import UUID
import structlog
from cml_workers.runtime.logs import configure_logging
from cml_workers.runtime.settings import Settings
configure_logging(Settings(log_format="json"))
log = structlog.get_logger()
log.info("plain", id=UUID(int=1), events=["a", "b"], missing=None, much=float("inf"), what=object)
log.info("no UTF-8", body=b"\xff", text="\ud800", events=["a"])
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""


def python(program: str) -> str:
    """What it writes to stderr."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_garbage_is_collected_seldom_and_still_collected() -> None:
    python(COLLECTS_SELDOM)


def test_every_log_line_is_json_whatever_it_holds() -> None:
    plain, strange, failed = (json.loads(line) for line in python(LOGS).splitlines())
    assert (plain["event"], plain["level"]) == ("plain", "info")
    assert (plain["id"], plain["events"], plain["missing"]) == (
        "00000000-0000-0000-0000-000000000001",
        ["a", "b"],
        None,
    )
    assert (strange["event"], strange["events"]) == ("no UTF-8", ["a"])
    assert "ZeroDivisionError" in failed["exception"]
