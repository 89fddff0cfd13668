"""What comes with ``pip install cml-contracts``: the types need pydantic, and only the client an AMQP library."""

import pkgutil
import subprocess
import sys
from importlib.metadata import metadata, requires

import pytest
from packaging.requirements import Requirement

import cml_contracts
from cml_tools.rooms import ROOMS

TYPES = sorted(
    {f"cml_contracts.{module.name}" for module in pkgutil.iter_modules(cml_contracts.__path__)}
    - {*ROOMS["contracts.client"].modules}
)


def needed(distribution: str, extra: str = "") -> set[str]:
    """The distributions that it asks for directly."""
    asked = (Requirement(each) for each in requires(distribution) or ())
    return {each.name for each in asked if each.marker is None or each.marker.evaluate({"extra": extra})}


def run(code: str, *blocked: str) -> subprocess.CompletedProcess[str]:
    """In an interpreter of its own, in which some modules cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))"
    return subprocess.run(
        [sys.executable, "-c", f"{block}\n{code}"], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_types_bring_pydantic_and_the_extra_the_rest():
    assert metadata("cml-contracts").get_all("Provides-Extra") == ["client"]
    assert needed("cml-contracts") == {"pydantic"}
    assert needed("cml-contracts", "client") == {"pydantic", "aio-pika", "yarl"}


def test_the_types_load_without_an_amqp_library():
    code = f"import {', '.join(TYPES)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = run(code, "aio_pika", "aiormq", "yarl")
    assert done.returncode == 0, done.stderr
    assert not {"cml_workers", "cml_embedded", "asyncio"} & set(done.stdout.split())


@pytest.mark.parametrize("missing", ["aio_pika", "yarl"])
def test_the_client_says_which_extra_it_needs(missing: str):
    done = run("import cml_contracts.client", missing)
    assert done.returncode == 1
    message = f"cml_contracts.client needs {missing}: pip install 'cml-contracts[client]'"
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {message}"
