"""What a test run used and measured; told at its end."""

import pytest

USED = pytest.StashKey[dict[str, str]]()
