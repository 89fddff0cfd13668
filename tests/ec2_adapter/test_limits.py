"""How often EC2 is called: token buckets by API and region, waiting that ends with the right to act, reads in bulk."""

import asyncio
import gc
from collections.abc import Mapping, Sequence
from datetime import timedelta

import pytest

from cml_workers.ec2_adapter.calls import TOGETHER, Calls
from cml_workers.ec2_adapter.errors import EC2StatusCheckException, EC2ThrottledException, Remedy
from cml_workers.ec2_adapter.limits import AWS_LIMITS, FIRST_PAUSE, Bucket, Limits
from cml_workers.ec2_adapter.port import AT_ONCE, MOST_DESCRIBED
from cml_workers.ec2_adapter.tenure import FRESH, NotFreshError, Tenure
from cml_workers.foundation.batching import Batcher
from cml_workers.foundation.metrics import REGISTRY
from support.clock import StillClock
from support.fake_ec2 import FakeEc2
from support.given import NOW, instance, launch
from support.spans import kept

THROTTLED = EC2ThrottledException("slow down", remedy=Remedy.RETRY)
SECOND = timedelta(seconds=1)


class Bench:
    """Limits on a clock that is paused; ``admitted``: in which second each call was."""

    def __init__(self, buckets: Mapping[str, Bucket] | None = AWS_LIMITS) -> None:
        self.clock = StillClock(NOW)
        self.limits = Limits(buckets, now=self.clock.now, sleep=self.clock.sleep, random=lambda: 0.5)
        self.ec2 = FakeEc2()
        self.calls = Calls(self.ec2, self.limits, self.clock.sleep)
        self.admitted: list[float] = []
        self.tasks: list[asyncio.Task[None]] = []

    def wait(self, api: str, region: str = "us-east-1", within: float = 1000) -> None:
        async def admit() -> None:
            await self.limits.admit(region, api, within=timedelta(seconds=within))
            self.admitted.append((self.clock.now() - NOW).total_seconds())

        self.tasks.append(asyncio.ensure_future(admit()))


async def test_a_burst_is_admitted_at_once_and_the_rest_as_the_bucket_fills():
    bench = Bench()
    for _ in range(9):
        bench.wait("RunInstances")
    await bench.clock.passes(10)
    assert bench.admitted == [0, 0, 0, 0, 0, 0.5, 1, 1.5, 2]


async def test_a_bucket_fills_while_nobody_calls_but_not_beyond_its_brim():
    bench = Bench({"X": Bucket(2, 1)})
    for _ in range(2):
        bench.wait("X")
    await bench.clock.passes(100)
    for _ in range(3):
        bench.wait("X")
    await bench.clock.passes(10)
    assert bench.admitted == [0, 0, 100, 100, 101]


async def test_neither_another_region_nor_another_api_waits():
    bench = Bench({"X": Bucket(1, 0.001), "Y": Bucket(1, 1)})
    bench.wait("X")
    bench.wait("X")
    bench.wait("X", "eu-west-1")
    bench.wait("Y")
    await bench.clock.passes(1)
    assert bench.admitted == [0, 0, 0]


async def test_who_would_wait_too_long_knows_it_at_once_and_takes_no_place():
    bench = Bench({"X": Bucket(1, 1)})
    bench.wait("X")
    bench.wait("X", within=0.5)
    bench.wait("X", within=1)
    await bench.clock.passes(5)
    assert bench.admitted == [0, 1]
    with pytest.raises(EC2ThrottledException) as busy:
        await bench.tasks[1]
    assert busy.value.remedy is Remedy.RETRY


async def test_what_is_not_called_is_counted():
    bench = Bench({"Counted": Bucket(1, 1)})
    bench.wait("Counted")
    await bench.clock.passes(0.1)
    assert REGISTRY.get_sample_value("cml_ec2_not_called_total", {"api": "Counted"}) == 0
    for _ in range(2):
        bench.wait("Counted", within=0.5)
    await bench.clock.passes(0.1)
    assert REGISTRY.get_sample_value("cml_ec2_not_called_total", {"api": "Counted"}) == 2
    assert [type(task.exception()) for task in bench.tasks[1:]] == [EC2ThrottledException] * 2


async def test_who_waits_for_its_turn_or_for_a_place_is_measured_and_has_a_span():
    class SlowEc2(FakeEc2):
        async def find_image(self, region: str, name: str, owner: str | None = None) -> str | None:
            await bench.clock.sleep(3)
            return await super().find_image(region, name, owner)

    def waited() -> float:
        return REGISTRY.get_sample_value("cml_ec2_wait_seconds_sum", {"api": "DescribeImages"}) or 0.0

    bench = Bench({"DescribeImages": Bucket(AT_ONCE, 1)})
    calls, before = Calls(SlowEc2(), bench.limits, bench.clock.sleep), waited()
    with kept() as spans:
        many = asyncio.gather(*(calls.find_image("us-east-1", "x", None) for _ in range(AT_ONCE + 1)))
        await bench.clock.until_done(many)
    turn, place = spans.named("wait for the limit of EC2")
    assert (turn.attributes or {})["rpc.method"] == (place.attributes or {})["rpc.method"] == "DescribeImages"
    assert waited() - before == 3  # a second for its turn, and then for the end of the first call


async def test_after_a_throttled_call_there_is_a_pause_and_then_one_after_another():
    bench = Bench({"X": Bucket(10, 2)})
    bench.limits.refused("us-east-1", "X")
    for _ in range(3):
        bench.wait("X")
    await bench.clock.passes(10)
    assert bench.admitted == [FIRST_PAUSE + 0.5, FIRST_PAUSE + 1, FIRST_PAUSE + 1.5]


async def test_the_pause_grows_with_each_throttled_call_and_ends_with_an_answer():
    bench = Bench(None)
    pauses = []
    for _ in range(7):
        bench.limits.refused("us-east-1", "X")
        before = bench.clock.now()
        await bench.clock.until_done(bench.limits.admit("us-east-1", "X", within=60 * SECOND))
        pauses.append((bench.clock.now() - before).total_seconds())
    assert pauses == [
        1.5,
        3,
        6,
        12,
        24,
        45,
        45,
    ]  # and half as long again, which is what each caller's own chance adds
    bench.limits.answered("us-east-1", "X")
    bench.limits.refused("us-east-1", "X")
    before = bench.clock.now()
    await bench.clock.until_done(bench.limits.admit("us-east-1", "X"))
    assert bench.clock.now() - before == 1.5 * SECOND


async def test_a_call_that_ec2_throttles_makes_the_next_one_wait():
    bench = Bench(None)
    bench.ec2.put(instance())
    bench.ec2.fail("describe_many", THROTTLED)
    with pytest.raises(EC2ThrottledException):
        await bench.calls.describe_many("us-east-1", [instance().instance_id])
    await bench.clock.until_done(bench.calls.describe_many("us-east-1", [instance().instance_id]))
    assert bench.clock.now() - NOW == 1.5 * SECOND


async def test_nothing_is_changed_when_the_wait_is_longer_than_what_was_read_may_be_acted_on():
    """Five launches at once, two a second after that, and what was read 20 seconds ago is too old."""
    bench = Bench()
    tenure = Tenure(bench.clock.now)
    tenure.begin()
    lease = tenure.lease()
    tasks = [
        asyncio.ensure_future(bench.calls.launch(launch(client_token=str(number)), lease))
        for number in range(100)
    ]
    await bench.clock.passes(60)
    launched = len(bench.ec2.instances)
    assert launched == 5 + 2 * FRESH.total_seconds() - 1  # at the very end it is too old
    refused = [task for task in tasks if task.exception()]
    assert len(refused) == 100 - launched
    assert {type(task.exception()) for task in refused} <= {EC2ThrottledException, NotFreshError}


# -- in bulk ----------------------------------------------------------------------------------------------


async def test_describes_that_come_together_are_one_call():
    bench = Bench()
    bench.ec2.put(instance())
    wanted = [instance().instance_id, "i-00000000000000001"] * 60
    seen = await bench.clock.until_done(
        asyncio.gather(*(bench.calls.describe("us-east-1", each) for each in wanted))
    )
    assert seen == [instance(), None] * 60
    assert bench.ec2.calls == ["describe_many"]


async def test_a_describe_that_comes_alone_does_not_wait_and_those_after_it_share_the_next():
    bench = Bench()
    bench.ec2.put(instance())

    async def describe() -> float:
        await bench.calls.describe("us-east-1", instance().instance_id)
        return (bench.clock.now() - NOW).total_seconds()

    assert await bench.clock.until_done(describe()) == 0
    after = await bench.clock.until_done(asyncio.gather(*(describe() for _ in range(5))))
    assert after == [TOGETHER] * 5
    assert bench.ec2.calls == ["describe_many"] * 2


async def test_more_than_one_call_takes_are_several():
    bench = Bench()
    ids = [f"i-{number:017x}" for number in range(MOST_DESCRIBED + 1)]
    await bench.clock.until_done(asyncio.gather(*(bench.calls.describe("us-east-1", each) for each in ids)))
    assert bench.ec2.calls == ["describe_many"] * 2


async def test_a_request_that_fails_when_its_askers_have_given_up_is_no_error_of_the_program():
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    clock = StillClock(NOW)

    async def ask(_: Sequence[str]) -> Mapping[str, str]:
        raise EC2StatusCheckException("no")

    impatient = asyncio.ensure_future(Batcher(ask, most=10, pause=0.01, sleep=clock.sleep).get("a"))
    await asyncio.sleep(0)
    impatient.cancel()
    await clock.passes(1)
    del impatient
    gc.collect()
    assert errors == []


async def test_who_gives_up_does_not_take_the_others_request_along():
    clock = StillClock(NOW)

    async def ask(keys: Sequence[str]) -> Mapping[str, str]:
        return dict.fromkeys(keys, "found")

    batcher = Batcher(ask, most=10, pause=0.01, sleep=clock.sleep)
    impatient, patient = (asyncio.ensure_future(batcher.get(each)) for each in "ab")
    await asyncio.sleep(0)
    impatient.cancel()
    assert await clock.until_done(patient) == "found"
