"""The promises under simulation: a campaign, faults at every step of overlapping commands, and the test of the test."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from cml_workers.lifecycle.handler import Lifecycle
from simulation import campaign, nets
from simulation.campaign_sum import Campaign
from simulation.planted import CALM_RUNS, PLANTED, Planted, caught_by
from simulation.run import FAULTLESS, simulate, simulate_script
from simulation.scripts import CHOSEN
from simulation.sweep import scripts
from support.instances import REGION, parameters
from support.malformed import MalformedRequests
from support.planting import BrokenPlantError
from support.used import USED

SEEDS = 400
"""Enough to meet everything that must be met once."""
SECONDS = 120.0
"""As many runs as there is time for, on a machine that is slow; `make simulate` and `make simulate-sweep` have no limit."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Hours of logs would be the greater part of the work."""
    before = structlog.get_config()
    campaign.quiet()
    yield
    structlog.configure(**before)


@pytest.mark.timeout(900)
def test_a_campaign(pytestconfig: pytest.Config):
    done = campaign.run(SEEDS, seconds=SECONDS)
    pytestconfig.stash[USED]["simulation"] = str(done)
    assert done.failed == {}, "again: make simulate SEED=..."
    assert done.refused == []
    assert len(done.asked) > 10
    if done.runs == SEEDS:
        assert done.idle == [], "these safety nets are not needed, or not tested"
        assert done.never == []


@pytest.mark.timeout(900)
def test_every_fault_at_every_step_of_some_overlapping_commands(pytestconfig: pytest.Config):
    done = campaign.sweep(CHOSEN, stride=8, seconds=SECONDS)
    pytestconfig.stash[USED]["simulation, every fault at every step"] = str(done)
    assert done.failed == {}, "again: make simulate-sweep SCRIPT=..."
    assert done.refused == []
    if done.runs >= done.planned:
        assert done.holes == []


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("list_instances", (REGION, {"instance-name": ["lab"]})),
        ("list_instances", (REGION, {"instance-id": [f"i-{number:017x}" for number in range(201)]})),
        ("status_checks", (REGION, [f"i-{number:017x}" for number in range(101)])),
        ("add_tags", (REGION, "i-00000000000000001", {"k" * 129: "v"})),
        ("launch", (parameters(tags={"k": "v" * 257}),)),
    ],
)
def test_a_call_that_ec2_in_memory_takes_and_ec2_would_not_is_seen(
    malformed: MalformedRequests, name: str, arguments: tuple[Any, ...]
):
    campaign = Campaign()
    campaign.asked = {**simulate(3).asked, "planted": (name, arguments, {})}
    assert len(campaign.refused) == 1
    assert malformed.taken() == campaign.refused


def test_without_a_fault_no_safety_net_does_anything():
    """Nobody sends again, nothing comes again, and there are no reminders: what is lost stays lost."""
    names = [each for each in scripts() if "uncertain" not in each]
    broken = {name: broken for name in names if (broken := simulate_script(scripts()[name]).violations)}
    assert broken == {}
    by_chance = {seed: simulate(seed, FAULTLESS).violations for seed in range(100)}
    assert {seed: broken for seed, broken in by_chance.items() if broken} == {}


def test_commands_that_do_not_overlap_are_not_even_decided_twice():
    done = simulate_script(scripts()["one after the other"], lifecycles=1)
    assert done.violations == []
    assert done.nets == {}


def test_every_net_has_a_meaning():
    named = {value for name, value in vars(nets).items() if name.isupper() and isinstance(value, str)}
    assert named == nets.MEANING.keys()


@pytest.mark.timeout(1800)
def test_every_planted_fault_is_caught(pytestconfig: pytest.Config):
    caught = campaign.catch_all(enough=1)
    found = "; ".join(f"{name} by {how}" for name, how in sorted(caught.items()))
    pytestconfig.stash[USED]["simulation, planted faults"] = found
    assert caught.keys() == PLANTED.keys()
    assert [name for name, how in caught.items() if not how] == []


async def _without_a_name(_self: Lifecycle, _message: object) -> object:
    return missing  # type: ignore[name-defined] # noqa: F821 - as after a renaming


async def _without_an_attribute(self: Lifecycle, _message: object) -> object:
    return self.missing  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "planted",
    [_without_a_name, _without_an_attribute, lambda _self: None],
    ids=["NameError", "AttributeError", "TypeError"],
)
def test_a_planted_fault_that_raises_an_error_of_its_own_is_not_caught_but_broken(
    planted: Callable[..., object], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    """Otherwise one that fits the code no more counts as caught as no command is answered with it."""
    broken = Planted(
        lambda patch: patch.setattr(Lifecycle, "on_command", planted), CALM_RUNS, "one after the other"
    )
    monkeypatch.setitem(PLANTED, "broken", broken)
    with pytest.raises(BrokenPlantError, match=f"broken raises {request.node.callspec.id}"):
        caught_by("broken")


def test_a_seed_makes_the_same_run_in_every_process():
    script = "from simulation.run import simulate; print(*(simulate(seed).digest for seed in range(8)))"
    traces = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]
        for hash_seed in ("1", "2")
    }
    assert len(traces) == 1
    assert len(set(traces.pop().split())) == 8


def test_two_runs_of_a_seed_in_one_process_are_the_same():
    assert simulate(3).digest == simulate(3).digest
