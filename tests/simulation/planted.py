"""Deliberate faults, each of which the simulation must catch: the test of the test.

Some are classic. Others were found in code that shipped, most by the simulation, and are fixed. The rest take away what a
promise rests on: a reply on one path, a trigger, an event in one queue, a safety net.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cml_contracts.events import (
    EVENTS,
    OperationRefused,
    StartFailed,
    StopFailed,
    TagsUpdateFailed,
    TerminationFailed,
    WorkerImported,
)
from cml_workers.bus.topology import EC2_TRIGGERS, TRIGGERS_EXCHANGE
from simulation.planted_faults import FAULTS
from simulation.planted_launches import LAUNCHES, dead_at_birth_ignored
from simulation.planted_losses import (
    event_missing_in_one_queue,
    event_out_of_order,
    reply_forgotten_by_a_report,
    reply_forgotten_by_a_status_update,
    reply_forgotten_of_a_rejection,
    reply_forgotten_when_settled,
    reply_forgotten_while_pending,
    without_trigger,
)
from simulation.planted_messages import MESSAGES
from simulation.planted_nets import NETS, not_rechecked, not_watched, waits_in_memory_only
from simulation.run import Outcome, simulate, simulate_script
from simulation.sweep import Plan, scripts, swept
from support.planting import BrokenPlantError, Plant, planting

SEEDS, SWEEP, CALM_RUNS = "seeds", "sweep", "runs without a fault"


@dataclass(frozen=True, slots=True)
class Planted:
    """A fault, and how it is caught; ``script``: with the sweep, a part of the names of the scripts that catch it."""

    plant: Plant
    by: str = SEEDS
    script: str = ""


TRIGGERS = [EVENTS[each.routing_key] for each in EC2_TRIGGERS.bindings if each.exchange == TRIGGERS_EXCHANGE]
SEEN_BY_THE_WALK = {StartFailed, StopFailed, TerminationFailed, TagsUpdateFailed, WorkerImported}
"""Triggers that are needed only where more comes together than in a script: ``tests/ec2_adapter/test_triggers.py``.

An import requests its tags in the same append, and the trigger of that begins the watch as well.
"""

PLANTED: Mapping[str, Planted] = {
    **{
        each.__name__: Planted(each)
        for each in (
            *FAULTS,
            *NETS,
            *MESSAGES,
            dead_at_birth_ignored,
        )
    },
    **{each.__name__: Planted(each, CALM_RUNS, "create without capacity") for each in LAUNCHES},
    "reply_forgotten_while_pending": Planted(
        reply_forgotten_while_pending, SWEEP, "start, terminate when it is requested"
    ),
    "reply_forgotten_when_settled": Planted(
        reply_forgotten_when_settled, SWEEP, "start, terminate when it is"
    ),
    "reply_forgotten_by_a_report": Planted(reply_forgotten_by_a_report, SWEEP, "stop, terminate, terminate"),
    "reply_forgotten_of_a_rejection": Planted(reply_forgotten_of_a_rejection, CALM_RUNS),
    "reply_forgotten_by_a_status_update": Planted(
        reply_forgotten_by_a_status_update, SWEEP, "terminate, update_status when it is called"
    ),
    "event_missing_in_one_queue": Planted(event_missing_in_one_queue, CALM_RUNS),
    "event_out_of_order": Planted(event_out_of_order, SWEEP, "stop, terminate, terminate"),
    "not_watched": Planted(not_watched, CALM_RUNS),
    "waits_in_memory_only": Planted(waits_in_memory_only, SWEEP, "create, stop when it is settled"),
    "not_rechecked": Planted(not_rechecked, SWEEP, "update_tags, update_tags when it is"),
    **{
        f"no_trigger_{event.__name__}": Planted(without_trigger(event), CALM_RUNS)
        for event in TRIGGERS
        if event is not OperationRefused and event not in SEEN_BY_THE_WALK
    },
    "no_trigger_OperationRefused": Planted(
        without_trigger(OperationRefused), SWEEP, "start, stop when it is req"
    ),
}


def caught_by(name: str, *, enough: int = 2, most: int = 2000) -> str:
    """What caught a planted fault, and how soon; empty if nothing did. Raises BrokenPlantError."""
    planted = PLANTED[name]
    own: list[Exception] = []
    with planting(own.append) as patch:
        planted.plant(patch)
        if planted.by == SEEDS:
            runs = (simulate(seed) for seed in range(most))
            last = most
        else:
            names = [each for each in scripts() if planted.script in each]
            if planted.by == CALM_RUNS:
                runs = (simulate_script(scripts()[each]) for each in names)
                last = len(names)
            else:
                points = Plan.of(names, 1).points
                runs = (outcome for each in points for outcome in swept([each]))
                last = len(points)
        failed: list[Outcome] = []
        for tried, outcome in enumerate(runs, 1):
            if own:
                raise BrokenPlantError(f"{name} raises {own[0]!r} itself")
            if outcome.violations:
                failed.append(outcome)
            if len(failed) == enough or (failed and tried == last):
                return (
                    f"{planted.by}: {len(failed)} of the first {tried} of {last}, e.g. {failed[0].name}: "
                    f"{failed[0].violations[0][:100]}"
                )
        return ""
