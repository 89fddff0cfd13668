"""Prometheus of the distribution, and its promtool: a process of the test's own, on loopback."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from support.children import ended, tied
from support.ports import free_port

MINUTE = 3
"""Seconds in the place of each minute after which an alert fires."""
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


class Prometheus:
    """One that runs; blocking."""

    def __init__(self, url: str) -> None:
        self._url = url

    def values(self, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
        """What an expression is now, by its labels. Raises HTTPError: it is none."""
        result = self._get("query", query=expression)["result"]
        return {tuple(sorted(each["metric"].items())): float(each["value"][1]) for each in result}

    def firing(self) -> set[str]:
        """The alerts that fire."""
        alerts = self._get("alerts")["alerts"]
        return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}

    def up(self) -> bool:
        """Whether it answers."""
        try:
            with urlopen(f"{self._url}/-/ready", timeout=10):
                return True
        except (HTTPError, URLError, ConnectionError):
            return False

    def _get(self, path: str, **query: str) -> dict[str, Any]:
        with urlopen(f"{self._url}/api/v1/{path}?{urlencode(query)}", timeout=30) as answer:
            data: dict[str, Any] = json.load(answer)["data"]
            return data


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, int]) -> Iterator[Prometheus]:
    """The configuration that is deployed, with ``MINUTE`` seconds to the minute that an alert lasts; ``targets``: ports by their names."""
    folder.mkdir()
    content = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())
    content["global"] = dict.fromkeys(("scrape_interval", "evaluation_interval", "scrape_timeout"), "2s")
    (job,) = content["scrape_configs"]
    job["static_configs"] = [
        {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": name}} for name, port in targets.items()
    ]
    rules = yaml.safe_load((OBSERVABILITY / "alerts.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        rule["for"] = f"{MINUTE * int(rule['for'].removesuffix('m'))}s"
    (folder / "alerts.yml").write_text(yaml.safe_dump(rules))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(content))
    port = free_port()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            tied(
                program("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--query.lookback-delta=10s",
            ),
            stdout=log,
            stderr=log,
            text=True,
        )
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        end = time.monotonic() + 60
        while not server.up():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.1)
        yield server
    finally:
        ended(process)
