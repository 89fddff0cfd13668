"""The script that restricts a KurrentDB, as a module."""

import importlib.util
from types import ModuleType

import pytest

from support.secured import ROOT


@pytest.fixture
def restrict() -> ModuleType:
    """The script."""
    spec = importlib.util.spec_from_file_location("restrict", ROOT / "deploy/kurrentdb/restrict.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script
