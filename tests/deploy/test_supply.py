"""What is deployed is what was tested, and reaches no more than it has to."""

import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from cml_workers.process.registry import ROLES
from cml_workers.runtime.role import Part

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
KUBERNETES = ROOT / "deploy/kubernetes"
MANIFESTS: list[dict[str, Any]] = [
    manifest
    for path in sorted(KUBERNETES.rglob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text())
]
METADATA_SERVICES = ("169.254.169.254", "fd00:ec2::254")
"""EC2 user guide, *Use instance metadata*."""


def pins(name: str) -> set[tuple[str, str, frozenset[str]]]:
    """Package, version and hashes, without the platforms that a pin is for."""
    text = (REQUIREMENTS / f"{name}.txt").read_text().replace("\\\n", "")
    found = set()
    for line in filter(None, text.splitlines()):
        requirement, *hashes = line.split("--hash=")
        package, version = requirement.partition(";")[0].strip().split("==")
        found.add((package, version, frozenset(map(str.strip, hashes))))
    return found


@pytest.mark.parametrize("part", ["prod", "embedded", "build"])
def test_what_is_deployed_has_the_versions_that_are_tested(part: str):
    assert pins(part)
    assert pins(part) - pins("dev") == set()


@pytest.mark.parametrize("path", sorted(REQUIREMENTS.glob("*.txt")), ids=lambda path: path.stem)
def test_everything_is_pinned_with_hashes_and_names_no_host(path: Path):
    assert all(hashes for _, _, hashes in pins(path.stem))
    assert "://" not in path.read_text()
    assert not re.search(r"^-", path.read_text(), re.MULTILINE)


def test_no_pod_has_a_token_of_the_kubernetes_api():
    """Not the EC2 adapter either: its credentials come from a volume of their own, which the webhook of IRSA mounts."""
    pods = [each["spec"]["template"]["spec"] for each in MANIFESTS if "template" in each.get("spec", {})]
    assert len(pods) == len(ROLES) + 1
    assert [pod for pod in pods if pod["automountServiceAccountToken"] is not False] == []


def egress() -> list[tuple[str, dict[str, Any]]]:
    return [
        (each["metadata"]["name"], rule)
        for each in MANIFESTS
        if each["kind"] == "NetworkPolicy"
        for rule in each["spec"]["egress"]
    ]


def test_no_pod_reaches_the_metadata_service_of_its_node():
    for name, rule in egress():
        assert rule["to"], f"{name} reaches everything"
        for block in (each["ipBlock"] for each in rule["to"] if "ipBlock" in each):
            inside, outside = (
                ip_network(block["cidr"]),
                [ip_network(each) for each in block.get("except", ())],
            )
            for service in map(ip_address, METADATA_SERVICES):
                assert service not in inside or any(service in each for each in outside), name


def test_only_who_calls_ec2_reaches_https():
    (aws,) = (
        each for each in MANIFESTS if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == "aws"
    )
    (chosen,) = aws["spec"]["podSelector"]["matchExpressions"]
    assert set(chosen["values"]) == {name for name, role in ROLES.items() if Part.EC2 in role.needs}
    assert {name for name, rule in egress() if 443 in {each["port"] for each in rule["ports"]}} == {"aws"}


def test_every_image_of_others_can_be_named_by_its_digest():
    """``deploy/pin-images`` finds the same ones, and compose takes what it writes."""
    files = (ROOT / "docker-compose.yml", ROOT / "deploy/compose.secured.yml")
    images = [
        each
        for path in files
        for each in re.findall(r"^\s*(?:image|PYTHON_IMAGE): (\S+)", path.read_text(), re.MULTILINE)
    ]
    assert images
    for image in images:
        assert re.fullmatch(r"\$\{[A-Z_]+:-[^}:]+:(?!latest)[^}]+\}", image), image
