"""What ``/readyz`` says when the parts that it asks do not answer as they should."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from cml_workers.eventstore.following import Following
from cml_workers.eventstore.port import StoreConfigurationError, StoreUnavailableError
from cml_workers.foundation.failures import ConfigurationError
from cml_workers.foundation.outages import Dependency
from cml_workers.runtime import health
from cml_workers.runtime.health import exposition, probes, report
from cml_workers.runtime.role import Running, utc_now
from support.unreliable import GoneError, Unreliable


def part(name: str, ping: Callable[[], Awaitable[None]]) -> Dependency:
    return Dependency(name, ping, (ConnectionError,))


async def fine() -> None:
    pass


@pytest.mark.parametrize("name", ["event store", "database"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoreConfigurationError("wrong password; fix KURRENTDB_URI"), "wrong password; fix KURRENTDB_URI"),
        (StoreUnavailableError("gone"), "gone"),
        (TimeoutError(), "no answer"),
    ],
)
async def test_each_part_is_asked_and_named_whatever_it_says(name: str, error: Exception, said: str) -> None:
    async def refused() -> None:
        raise error

    ready, content = await report([], [part("another", fine), part(name, refused)])
    assert (ready, content["problems"]) == (False, {name.replace(" ", "-"): [said]})


async def test_a_part_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PING_TIMEOUT", 0.05)

    async def never() -> None:
        await asyncio.Event().wait()

    async with asyncio.timeout(30):
        ready, content = await report([], [part("event store", never), part("database", never)])
    assert not ready
    assert content["problems"] == {"event-store": ["no answer"], "database": ["no answer"]}


async def test_an_outage_is_said_with_its_beginning_and_over_when_it_is_over() -> None:
    part = Unreliable("database")
    part.works = False
    assert await part.outages.caused(GoneError())
    ready, content = await report([], [part.dependency])
    assert not ready
    (said,) = content["problems"]["database"]
    assert "work waits for it since" in said
    assert "no answer" in said
    part.works = True
    async with asyncio.timeout(30):
        await part.outages.over()
    assert (await report([], [part.dependency]))[0]


async def test_it_answers_when_the_database_lets_nobody_in() -> None:
    async def refused() -> int:
        raise ConfigurationError("password authentication failed")

    ready, content = await report([Running("projector", (), dead_letters=refused)], [])
    assert ready
    assert "dead_letters_waiting" not in content


async def test_it_says_how_far_a_follower_has_come_and_how_far_it_lags() -> None:
    now = asyncio.get_running_loop().time()
    following = Following(position="7", last_event_at=utc_now(), moved_at=now, event_at=now + 90)
    ready, content = await report([Running("relay", (), followings=(following,))], [])
    said = content["followers"]["relay"]
    assert ready
    assert said["position"] == "7"
    assert said["lag_seconds"] == pytest.approx(90, abs=5)
    assert said["last_progress_at"][:10] == utc_now().isoformat()[:10]
    assert json.dumps(content)


@pytest.mark.parametrize("behind", [0, 1])
async def test_of_several_followers_the_slowest_is_shown(behind: int) -> None:
    """One that is at the end hides no other."""
    now = asyncio.get_running_loop().time()
    followings = [Following(position="9", caught_up=True, moved_at=now) for _ in range(2)]
    followings[behind] = Following(
        "7", utc_now(), caught_up=False, attempts=3, moved_at=now, event_at=now + 90
    )
    role = Running("projector", (), followings=tuple(followings))
    said = (await report([role], []))[1]["followers"]["projector"]
    assert (said["position"], said["caught_up"], said["failures_in_a_row"]) == ("7", False, 3)
    metrics = exposition([role]).decode()
    assert 'cml_follower_caught_up{role="projector"} 0.0' in metrics
    (lag,) = re.findall(r'cml_follower_lag_seconds\{role="projector"\} (\S+)', metrics)
    assert float(lag) == pytest.approx(90, abs=5)
    followings[behind].caught_up = True  # both are at the end, and it still took the last event so long
    assert (await report([role], []))[1]["followers"]["projector"]["position"] == "7"


async def test_a_process_that_starts_is_alive_and_shows_what_it_waits_for() -> None:
    """What it shows changes while the probes are served."""
    starting = Unreliable()
    starting.works = False
    running: list[Running] = []
    parts: list[Dependency] = []

    def ask(path: str) -> tuple[int, dict[str, object]]:
        try:
            with urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                return error.code, json.load(error)

    async with probes(0, running, parts, "127.0.0.1") as port:
        running.append(Running("relay", (lambda: "it starts",)))
        parts.append(starting.dependency)
        assert await asyncio.to_thread(ask, "livez") == (200, {"alive": True})
        status, content = await asyncio.to_thread(ask, "readyz")
        assert (status, content["problems"]) == (503, {"event-store": ["no answer"], "relay": ["it starts"]})
        starting.works = True
        running[0] = Running("relay", ())
        assert (await asyncio.to_thread(ask, "readyz"))[0] == 200
