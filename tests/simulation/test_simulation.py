"""The promises under simulation: a campaign, a crash at every point, planted faults, and that a seed is repeatable."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulation import campaign
from simulation.fleet import simulate
from simulation.planted import PLANTED
from support.used import USED

SEEDS = 1000
SECONDS = 90.0
"""As many of the seeds as there is time for, on a machine that is busy."""
FEWEST = 100


@pytest.mark.timeout(400)
def test_a_campaign(pytestconfig: pytest.Config):
    done = campaign.run(SEEDS, seconds=SECONDS)
    pytestconfig.stash[USED]["simulation"] = str(done)
    assert done.failed == {}, "again: make simulate SEED=..."
    assert done.runs >= FEWEST
    if done.runs == SEEDS:
        assert done.never == []


@pytest.mark.timeout(400)
def test_one_crash_at_every_point(pytestconfig: pytest.Config):
    done = campaign.sweep()
    pytestconfig.stash[USED]["simulation, one crash at every point"] = str(done)
    assert done.failed == {}
    assert done.crashes > 300


@pytest.mark.timeout(600)
def test_every_planted_fault_is_caught(pytestconfig: pytest.Config):
    caught = campaign.catch_all(enough=1)
    told = ", ".join(f"{name} {failing} of {tried}" for name, (failing, tried) in sorted(caught.items()))
    pytestconfig.stash[USED]["simulation, planted faults"] = f"failing seeds: {told}"
    assert caught.keys() == PLANTED.keys()
    assert [name for name, (failing, _) in caught.items() if not failing] == []


def test_a_seed_makes_the_same_run_in_every_process():
    script = "from simulation.fleet import simulate; print(*(simulate(seed).digest for seed in range(8)))"
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
