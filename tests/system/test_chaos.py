"""Chaos for every day: a few kills among all kinds of faults. ``make chaos`` has the long one."""

from itertools import islice
from pathlib import Path

import pytest
from rich.console import Console

from system.chaos import Broker, Kill, Locked, Network, links, schedule, unleash


@pytest.mark.timeout(400)
async def test_kills_among_other_faults_lose_nothing_and_double_nothing(tmp_path: Path):
    out = Console(width=200)
    outcome = await unleash(tmp_path, kills=8, seed=31, store="sqlite", pace=1.0, wave=40, out=out)
    out.print(outcome.table())
    assert outcome.violations == []
    assert outcome.kills.total() == 8
    assert outcome.faults.keys() == {
        *("kill", "kill of two at once", "kill while it starts", "freeze", "broker restarted"),
        *("network cut", "network stalled", "network slowed", "store file locked", "fault of EC2"),
    }
    assert outcome.sent == outcome.answered >= 40
    assert outcome.launched > 0


def test_the_same_seed_gives_the_same_faults_and_another_one_others():
    first, again, other = (list(islice(schedule(seed, "sqlite"), 200)) for seed in (1, 1, 2))
    assert first == again != other


def test_every_kind_of_fault_comes_and_the_network_of_everybody_is_hit():
    faults = list(islice(schedule(1, "kurrentdb"), 2000))
    hit = {(fault.who, fault.part, fault.how) for fault in faults if isinstance(fault, Network)}
    assert hit == {(*link, how) for link in links("kurrentdb") for how in ("cut", "stalled", "slowed")}
    assert {fault.crash for fault in faults if isinstance(fault, Broker)} == {True, False}
    assert {len(fault.victims) for fault in faults if isinstance(fault, Kill)} == {1, 2}
    assert not [fault for fault in faults if isinstance(fault, Locked)]  # there is no file
