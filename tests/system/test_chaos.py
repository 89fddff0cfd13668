"""Chaos for every day: a few kills among all kinds of faults. ``make chaos`` has the long one."""

from collections.abc import Set as AbstractSet
from itertools import islice
from pathlib import Path

import pytest
from rich.console import Console

from support.servers import Harm
from support.tcp_proxy import WHAT
from system.chaos.messages import MESSAGES
from system.chaos.outcome import Outcome
from system.chaos.parts import setup_of
from system.chaos.schedule import AtMessage, Freeze, Kill, Network, Setup, Store, kinds, links, schedule
from system.chaos.unleash import unleash

# A connection that the network breaks while it is opened leaves a coroutine of the library behind.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <coroutine object Connection.close")


async def lived_through(
    folder: Path,
    store: Store,
    must_meet: AbstractSet[str],
    measured: Harm,
    *,
    seed: int,
    kills: int,
    wave: int,
) -> Outcome:
    """A run in which nobody lost anything, and every command was answered; callers send once."""
    out = Console(width=200)
    outcome = await unleash(
        folder,
        kills=kills,
        seed=seed,
        store=store,
        pace=0.7,
        wave=wave,
        must_meet=must_meet,
        measured=(measured,),
        out=out,
    )
    out.print(outcome.table())
    assert outcome.violations == []
    assert outcome.kills.total() == kills
    assert outcome.faults.keys() >= must_meet
    assert outcome.unanswered == 0 < outcome.awaited
    return outcome


@pytest.mark.timeout(1100)
async def test_every_kind_of_fault_loses_nothing_and_doubles_nothing(tmp_path: Path):
    """On the store that has a network and a process of its own."""
    every = kinds(setup_of("kurrentdb"))
    outcome = await lived_through(tmp_path, "kurrentdb", every, "killed", seed=31, kills=8, wave=60)
    assert outcome.faults.keys() == every
    assert outcome.awaited >= 40
    assert outcome.launched > 0


@pytest.mark.timeout(800)
async def test_kills_on_a_shared_store_file_lose_nothing_and_double_nothing(tmp_path: Path):
    must = {"kill", "freeze", "store file locked", "rabbitmq: cut before"}
    await lived_through(tmp_path, "sqlite", must, "killed", seed=32, kills=4, wave=40)


@pytest.mark.timeout(800)
async def test_store_and_database_that_fail_over_lose_nothing_and_double_nothing(tmp_path: Path):
    """Under load alone, and then once more to measure how long what waited goes on waiting."""
    must = {"kurrentdb failed over", "postgresql failed over"}
    outcome = await lived_through(tmp_path, "kurrentdb", must, "failed over", seed=33, kills=0, wave=40)
    assert outcome.faults.keys() == outcome.returns.keys() == must
    assert outcome.gave_up == {}


def test_the_same_seed_gives_the_same_faults_and_another_one_others():
    first, again, other = (list(islice(schedule(seed, Setup("sqlite")), 200)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("store", ["sqlite", "kurrentdb"])
def test_every_kind_of_fault_comes_and_the_network_of_everybody_is_hit(store):
    setup = Setup(store)
    faults = list(islice(schedule(1, setup), 4000))
    assert {fault.kind for fault in faults} == kinds(setup)
    hit = {(fault.who, fault.part, fault.how) for fault in faults if isinstance(fault, Network)}
    assert hit == {(*link, how) for link in links(setup) for how in ("cut", "stalled", "slowed")}
    assert {len(fault.victims) for fault in faults if isinstance(fault, Kill)} == {1, 2}
    assert {fault.victim for fault in faults if isinstance(fault, Freeze)} >= set(setup.suffers("frozen"))


def test_the_network_breaks_at_every_chosen_message_of_everybody():
    faults = [
        fault for fault in islice(schedule(1, Setup("kurrentdb")), 20_000) if isinstance(fault, AtMessage)
    ]
    caught = {(fault.part, fault.trap.pattern, fault.trap.towards) for fault in faults}
    assert caught >= {(part, *each) for (_, part), messages in MESSAGES.items() for each in messages}
    broken = {(who, fault.part) for fault in faults for who in fault.who}
    assert broken == set(links(Setup("kurrentdb"))) - {
        ("projector", "rabbitmq")
    }  # nobody asks it anything there
    assert {fault.trap.what for fault in faults} == set(WHAT)


def test_servers_of_others_have_no_network_of_ours_and_suffer_what_there_are_commands_for(
    monkeypatch: pytest.MonkeyPatch,
):
    commands = {
        "KURRENTDB_STOP": "x",
        "KURRENTDB_START": "x",
        "KURRENTDB_FAIL_OVER": "x",
        "DATABASE_FREEZE": "x",
    }
    for name, value in {
        "KURRENTDB_URI": "esdb://one:2113",
        "DATABASE_URL": "postgresql://one",
        **commands,
    }.items():
        monkeypatch.setenv(name, value)
    setup = setup_of("kurrentdb")
    assert {part for _, part in links(setup)} == {"rabbitmq", "ec2"}
    suffering = {kind for kind in kinds(setup) if kind.startswith(("kurrentdb", "postgresql"))}
    assert suffering == {"kurrentdb killed", "kurrentdb failed over"}
