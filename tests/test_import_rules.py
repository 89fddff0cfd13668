"""The import rules hold, and they notice when they do not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BREACHES = [
    ("domain/decide.py", "import aio_pika"),
    ("domain/decide.py", "from cml_workers.eventstore import sqlite"),
    ("domain/worker.py", "import sqlalchemy"),
    ("ec2_adapter/next_action.py", "from cml_workers.ec2_adapter import aws"),
    ("projector/rows.py", "from cml_workers import sql"),
    ("lifecycle/handler.py", "from cml_workers.bus import rabbit"),
    ("relay/relay.py", "from cml_workers.projector import rows"),
    ("eventstore/port.py", "from cml_workers.lifecycle import handler"),
    ("bus/rabbit.py", "from cml_embedded import amqp_broker"),
]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache", "--config", ROOT / "pyproject.toml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder / 'services'}{os.pathsep}{folder / 'contracts'}"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_rules_hold():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("module", "statement"), BREACHES)
def test_a_breach_is_noticed(tmp_path: Path, module: str, statement: str):
    for part in ("services", "contracts"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    breached = tmp_path / "services" / "cml_workers" / module
    breached.write_text(f"{breached.read_text()}\n{statement}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout
    assert "BROKEN" in done.stdout
