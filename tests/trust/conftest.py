"""Lifecycle's handler on a store of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.service import Service, opened


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with opened(tmp_path) as service:
        yield service
