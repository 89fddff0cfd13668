"""What waits in the adapter's memory while the event store does not answer."""

from typing import Any

import pytest

from cml_workers.ec2_adapter.errors import EC2ThrottledException, Remedy
from support.given_adapter import Given
from support.histories import REQUESTED, WAITS
from support.unreliable import Unreliable

THROTTLED = EC2ThrottledException("slow down", remedy=Remedy.RETRY, retryable=True)


async def test_it_waits_for_the_store_and_goes_on_at_once(given: Given, monkeypatch: pytest.MonkeyPatch):
    part = Unreliable()
    adapter = given(*REQUESTED).refusing("launch", THROTTLED)
    adapter.executor._outages = part.outages
    read = adapter.store.read
    tried = 0

    async def reached(*arguments: Any, **options: Any) -> Any:
        nonlocal tried
        tried += 1
        part.use()
        return await read(*arguments, **options)

    monkeypatch.setattr(adapter.store, "read", reached)
    assert await adapter.triggered() == WAITS
    part.works = False
    await adapter.passes(5)
    assert part.dependency.problem() is not None
    tried_by_then = tried
    await adapter.passes(3600)
    assert tried == tried_by_then
    assert adapter.called("launch") == 1
    part.works = True
    await part.outages.over()
    await adapter.passes(0)
    assert adapter.called("launch") == 2
    await part.dependency.close()
