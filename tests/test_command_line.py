"""What the command line does before it does anything."""

import subprocess
import sys

INTERRUPTED = """
import sys

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "cml_workers.cli.app":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
from cml_workers.cli import main
main()
"""


def test_ctrl_c_while_it_loads_ends_it_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
