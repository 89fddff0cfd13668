"""The policies that docs/deployment.md has typed are the shipped ones."""

import argparse
import json
import re
import shlex
from typing import Any

from cml_tools.definitions import definitions
from support.secured import ROOT

DEPLOYMENT = (ROOT / "docs/deployment.md").read_text()
_COMMAND = re.compile(r"^rabbitmqctl set_policy ((?:.*\\\n)*.*)$", re.MULTILINE)


def typed(arguments: str) -> dict[str, Any]:
    """The policy that `set_policy` makes of them, as definitions have it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--apply-to", default="all")
    parser.add_argument("--priority", type=int, default=0)
    parser.add_argument("--vhost", default="/")
    for name in ("name", "pattern", "definition"):
        parser.add_argument(name)
    found = vars(parser.parse_args(shlex.split(arguments.replace("\\\n", ""))))
    found["apply-to"] = found.pop("apply_to")
    found["definition"] = json.loads(found["definition"])
    return found


def by_name(policies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(policies, key=lambda policy: str(policy["name"]))


def test_the_policies_that_are_typed_are_those_of_the_definitions():
    documented = [typed(arguments) for arguments in _COMMAND.findall(DEPLOYMENT)]
    assert by_name(documented) == by_name(definitions({})["policies"])
