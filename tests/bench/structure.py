"""How many files a change has to touch, as far as that can be counted: ``python tests/bench/structure.py [CHECKOUT]``."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

POWER = re.compile(
    r"Stop(CMLWorker|Requested|Failed|Instances)|InstanceStopping|instance_stopping"
    r"|(worker|ec2)\.stop\b|\.stop\.v1|stop_(requested|failed|instances)|def _?stop\b.*(worker|turn|instance)"
)
"""The names of the operation *stop*, and not of the states or of ending a process."""
ROLE = re.compile(r"\brelay\b", re.IGNORECASE)
LONG = 300
"""Lines above which a file is long."""
GENERATED = (
    "requirements/",
    "deploy/rabbitmq/definitions.json",
    "docs/asyncapi.json",
    "docs/configuration.md",
    "docs/performance.md",
    "docs/roles.md",
)
HISTORY = ("docs/decisions/", "CHANGELOG.md")
DEMO = "services/cml_workers/cli/demo.py"
"""It shows some operations and all roles; a new one needs no place in it."""


def measure(checkout: Path) -> dict[str, Any]:
    """The files that name an operation or a role, and the long ones."""
    texts = {path: _text(checkout / path) for path in _files(checkout)}
    others = {path: text for path, text in texts.items() if not path.startswith("tests/")}
    stop, relay = _naming(POWER, others), _naming(ROLE, others)
    long = {
        path: text.count("\n")
        for path, text in texts.items()
        if path.endswith(".py") and text.count("\n") > LONG
    }
    return {
        "non-test files that name stop": len(stop),
        "stop": stop,
        "all files that name stop": len(_naming(POWER, texts)),
        "non-test files that name relay": len(relay),
        "relay": relay,
        "non-test modules over 300 lines": len([path for path in long if not path.startswith("tests/")]),
        "modules over 300 lines": len(long),
        "long": dict(sorted(long.items(), key=lambda each: -each[1])),
    }


def _files(checkout: Path) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    left_out = (*GENERATED, *HISTORY, DEMO)
    return [path for path in listed if not path.startswith(left_out) and "/bench/" not in path]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (UnicodeDecodeError, OSError):
        return ""


def _naming(name: re.Pattern[str], texts: dict[str, str]) -> list[str]:
    return sorted(path for path, text in texts.items() if name.search(text))


if __name__ == "__main__":
    print(json.dumps(measure(Path(*sys.argv[1:2]).absolute()), indent=2))
