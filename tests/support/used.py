"""What a test run used and measured; reported at its end."""

import pytest

USED = pytest.StashKey[dict[str, str]]()
