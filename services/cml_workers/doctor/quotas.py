"""Which quota of EC2 counts the vCPUs of an instance type."""

import re
from typing import NamedTuple


class Quota(NamedTuple):
    """``families``: the letters with which the names of its types begin; ``code``: of Service Quotas."""

    families: frozenset[str]
    code: str
    name: str


QUOTAS = tuple(
    Quota(frozenset(families.split()), code, f"Running On-Demand {name} instances")
    for families, code, name in (
        ("a c d h i m r t z", "L-1216C47A", "Standard (A, C, D, H, I, M, R, T, Z)"),
        ("dl", "L-6E869C2A", "DL"),
        ("f", "L-74FC7D96", "F"),
        ("g vt", "L-DB2E81BA", "G and VT"),
        ("hpc", "L-F7808C92", "HPC"),
        ("inf", "L-1945791B", "Inf"),
        ("p", "L-417A185B", "P"),
        ("trn", "L-2C3B7624", "Trn"),
        ("u", "L-43DA4232", "High Memory"),
        ("x", "L-7295265B", "X"),
    )
)
"""https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-on-demand-instances.html#ec2-on-demand-instances-limits"""
_LONG = {family for quota in QUOTAS for family in quota.families if len(family) > 1}


def quota_of(instance_type: str) -> Quota | None:
    """None: of no family that is known here."""
    letters = re.match("[a-z]*", instance_type)
    family = letters[0] if letters else ""
    if family not in _LONG:
        family = family[:1]  # m5zn, im4gn, and what else has more letters after the first
    return next((quota for quota in QUOTAS if family in quota.families), None)
