"""A process with a deliberate fault that fits the code no more is an error of the test."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.planting import BrokenPlantError
from support.roles import TESTS, Roles

ENDS_AT_ONCE = """
from support import planted_role
planted_role.run(lambda patch: patch.setattr(planted_role, "main", lambda{arguments}: None))
"""


@pytest.mark.parametrize(("arguments", "broken"), [("", False), (" missing", True)])
def test_a_planted_fault_that_raises_an_error_of_its_own_breaks_the_run(
    tmp_path: Path, arguments: str, broken: bool
):
    roles = Roles(tmp_path, processes=())
    roles.logs["lifecycle"] = tmp_path / "lifecycle.log"
    script = ENDS_AT_ONCE.format(arguments=arguments)
    with roles.logs["lifecycle"].open("wb") as log:
        done = subprocess.run([sys.executable, "-c", script], cwd=TESTS, stderr=log, check=False)
    assert (done.returncode != 0) is broken
    if broken:
        with pytest.raises(BrokenPlantError):
            roles.kill()
    else:
        roles.kill()
