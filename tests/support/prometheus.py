"""Prometheus' own tools, as the distribution has them."""

import shutil
import subprocess
from pathlib import Path

OBSERVABILITY = Path(__file__).parents[2] / "deploy" / "observability"


class NoPrometheusError(Exception):
    """It is not installed."""


def program(name: str) -> str:
    """Where it is. Raises NoPrometheusError."""
    found = shutil.which(name)
    if found is None:
        raise NoPrometheusError(f"no {name} here; tests/support/ensure-services installs it")
    return found


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What it says. Raises NoPrometheusError."""
    return subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)
