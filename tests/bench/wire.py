"""Measures over the wire: each beside a bare echo and the least role in the same run, by turns."""

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any
from uuid import UUID

from bench.adapter import Store
from bench.fleet import CREATE, NEW_WORKER, Fleet, Size, expect
from bench.history import rejected
from bench.processes import ROLES, System, busy_seconds
from bench.rpc import Rpc

RECORDED = ("no-op", "rejected", "tag update", "status")
"""Each of these makes the worker's stream longer, or may do so."""
REFERENCES = ("echo", "quorum echo", "least role")
PATIENCE = 60
"""Seconds after which callers give up."""
QUIET = 0.02
"""Share of a core below which the roles count as idle."""


@dataclass
class Slice:
    """One measure in one round."""

    calls: int
    seconds: float
    latency: float
    settling: float
    cpu: dict[str, float]

    @property
    def rate(self) -> float:
        return self.calls / self.seconds


class Wire:
    """Measures one system."""

    def __init__(self, system: System, size: Size) -> None:
        self._system = system
        self._size = size

    async def run(self, only: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
        """The sections that were asked for."""
        results: dict[str, Any] = {}
        async with Rpc(self._system.amqp_url) as rpc:
            fleet = Fleet(rpc)
            say("creating the workers")
            await fleet.create(self._size)
            await self._settled()
            for name, section in (
                ("throughput", self.throughput),
                ("latency", self.latency),
                ("long", self.long),
                ("burst", self.burst),  # last, as what its callers gave up is still under way
            ):
                if name not in only:
                    continue
                say(f"{name} (load {os.getloadavg()[0]:.1f})")
                others = Others(self._system)
                results[name] = await section(fleet)
                results[name]["load"] = round(os.getloadavg()[0], 2)
                results[name]["cpu of others"] = others.share()
        return results

    async def throughput(self, fleet: Fleet) -> dict[str, Any]:
        """Calls per second, ``in_flight`` at once, each caller with a worker of its own."""
        slices = await self._rounds(fleet, self._size.in_flight, self._size.seconds)
        summary: dict[str, Any] = {}
        for name, each in slices.items():
            summary[name] = {
                "per second": _median(s.rate for s in each),
                "rates": [round(s.rate, 1) for s in each],
                "latency ms": _median(s.latency * 1e3 for s in each),
                "followers settle s": _median(s.settling for s in each),
                "cpu ms": {
                    role: _median(s.cpu[role] / s.calls * 1e3 for s in each) for role in self._system.pids
                },
                **{
                    f"of {reference}": _median(
                        s.rate / of.rate for s, of in zip(each, slices[reference], strict=True)
                    )
                    for reference in REFERENCES
                },
            }
        return {"measures": summary}

    async def latency(self, fleet: Fleet) -> dict[str, Any]:
        """Milliseconds from sending to the reply, one call at a time on an idle system."""
        slices = await self._rounds(fleet, 1, self._size.seconds / 2)
        return {
            "measures": {
                name: {
                    "ms": _median(s.latency * 1e3 for s in each),
                    "medians": [round(s.latency * 1e3, 2) for s in each],
                    **{
                        f"of {reference}": _median(
                            s.latency / of.latency for s, of in zip(each, slices[reference], strict=True)
                        )
                        for reference in REFERENCES
                    },
                }
                for name, each in slices.items()
            }
        }

    async def burst(self, fleet: Fleet) -> dict[str, Any]:
        """Seconds until the last of many commands for one worker, sent at once and all rejected, is answered."""
        taken: list[float] = []
        for worker in fleet.for_bursts:
            began = time.perf_counter()
            commands = (fleet.send(CREATE, worker, **NEW_WORKER) for _ in range(self._size.burst))
            try:
                async with asyncio.timeout(PATIENCE):
                    for reply in await asyncio.gather(*commands):
                        expect(reply, "rejected")
            except TimeoutError:
                return {"commands": self._size.burst, "seconds": None, "more than": PATIENCE}
            taken.append(time.perf_counter() - began)
            await self._settled()
        return {
            "commands": self._size.burst,
            "seconds": _median(taken),
            "all": [round(each, 2) for each in taken],
        }

    async def long(self, fleet: Fleet) -> dict[str, Any]:
        """One call at a time for a worker of a long stream, and for one of a short stream, by turns."""
        store = Store(self._system.store_uri)
        lengths = {}
        for name, worker, length in (
            ("long", fleet.long, self._size.long),
            ("short", fleet.short, self._size.short),
        ):
            lengths[name] = await store.extend(worker, [rejected() for _ in range(length)])
        await store.close()
        await self._settled()
        result: dict[str, Any] = {"events": lengths}
        for kind in ("rejected", "tag update"):
            call, outcome = fleet.calls()[kind]
            taken: dict[str, list[float]] = {"long": [], "short": []}
            for _ in range(self._size.repetitions):
                for name, worker in (("long", fleet.long), ("short", fleet.short)):
                    began = time.perf_counter()
                    expect(await call(worker), outcome)
                    taken[name].append(time.perf_counter() - began)
                    await asyncio.sleep(0.1)
            medians = {name: statistics.median(each) * 1e3 for name, each in taken.items()}
            result[kind] = {
                **{f"{name} ms": round(each, 2) for name, each in medians.items()},
                "long of short": round(medians["long"] / medians["short"], 2),
            }
        return result

    async def _rounds(self, fleet: Fleet, callers: int, seconds: float) -> dict[str, list[Slice]]:
        slices: dict[str, list[Slice]] = {}
        for _ in range(self._size.rounds):
            for place, (name, (call, outcome)) in enumerate(fleet.calls().items()):
                if not place or (callers > 1 and name in RECORDED):
                    await fleet.renew(self._size)
                    await self._settled()
                shares = [fleet.workers[number::callers] for number in range(callers)]
                measured = await self._slice(shares, call, outcome, seconds)
                slices.setdefault(name, []).append(measured)
        return slices

    async def _slice(
        self,
        shares: Sequence[Sequence[UUID]],
        call: Callable[[UUID], Awaitable[bytes]],
        outcome: str,
        seconds: float,
    ) -> Slice:
        latencies: list[float] = []
        before = self._system.cpu()
        began = time.perf_counter()

        async def caller(share: Sequence[UUID]) -> None:
            for worker in cycle(share):
                sent = time.perf_counter()
                if sent - began >= seconds:
                    break
                reply = await call(worker)
                latencies.append(time.perf_counter() - sent)
                expect(reply, outcome)

        await asyncio.gather(*map(caller, shares))
        taken = time.perf_counter() - began
        settling = await self._settled()
        after = self._system.cpu()
        return Slice(
            calls=len(latencies),
            seconds=taken,
            latency=statistics.median(latencies),
            settling=settling,
            cpu={name: after[name] - before[name] for name in after},
        )

    async def _settled(self) -> float:
        """Wait until relay and projector have nothing left to do; how long they took, in seconds."""
        began = last = time.perf_counter()
        quiet = 0
        used = self._roles_cpu()
        while quiet < 2 and time.perf_counter() - began < 120:
            await asyncio.sleep(0.2)
            now, then = time.perf_counter(), used
            used = self._roles_cpu()
            quiet = quiet + 1 if (used - then) / (now - last) <= len(ROLES) * QUIET else 0
            last = now
        return max(last - began - 0.4, 0.0)

    def _roles_cpu(self) -> float:
        cpu = self._system.cpu()
        return sum(cpu[name] for name in ROLES)


class Others:
    """What else the machine does meanwhile: the noise in a measurement."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._before = self._now()

    def _now(self) -> tuple[float, float, float]:
        return *busy_seconds(), sum(self._system.cpu().values())

    def share(self) -> float:
        """The share of the machine's CPU that others have used."""
        busy, total, ours = (now - then for now, then in zip(self._now(), self._before, strict=True))
        return round(max(busy - ours, 0.0) / total, 2)


def _median(values: Any) -> float:
    return round(float(statistics.median(values)), 3)


def measure(system: System, size: Size, only: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Run the sections on an event loop as the roles have one."""
    import uvloop  # noqa: PLC0415 - where it cannot be built, nothing else is lost

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Wire(system, size).run(only, say))
