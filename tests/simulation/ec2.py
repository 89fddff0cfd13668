"""EC2 in memory, as a process sees it over the internet, and as somebody with the console changes it."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from cml_contracts.instance import WORKER_TAG, Ec2Instance, InstanceState, LaunchParameters, StateReason
from cml_workers.ec2_adapter.errors import (
    EC2AuthenticationException,
    EC2CapacityException,
    EC2Error,
    EC2ThrottledException,
    OutcomeUnknownError,
    Remedy,
)
from cml_workers.ec2_adapter.port import Ec2, StateChange, StatusChecks
from simulation.coverage import CALLED, UNCERTAIN
from simulation.delivery import took_effect
from simulation.world import LINGERS, Process, World
from support.fake_ec2 import FakeEc2

T = TypeVar("T")
LONGEST_HIDDEN = 40.0
"""Seconds a new instance may be invisible; the graces of the run are longer."""
SIGNED_FOR = 100.0
"""Seconds after which EC2 refuses a request as expired (15 minutes at AWS); shorter than the graces of the run."""
INTERNAL_ERROR = StateReason(
    code="Server.InternalError", message="Server.InternalError: Internal error on launch"
)
LATEST = 20.0
"""Seconds after which a call that was given up may still take effect."""

_ENDS = {
    InstanceState.PENDING: InstanceState.RUNNING,
    InstanceState.STOPPING: InstanceState.STOPPED,
    InstanceState.SHUTTING_DOWN: InstanceState.TERMINATED,
}


@dataclass
class Cloud(FakeEc2):
    """``FakeEc2`` in which transitions take their time, and nothing is forgotten."""

    world: World = field(kw_only=True)
    tokens_of: dict[str, str] = field(default_factory=dict)
    """The token each instance was launched under."""
    on_call: Callable[[str, str, str], None] = field(default=lambda *_: None)
    """Called with each call that is made for a command: the phase, the command's id, the operation at EC2."""
    doomed: dict[str, InstanceState] = field(default_factory=dict)
    """Instances that EC2 ends or stops by itself before they run, and to which state they come instead."""
    never_ran: set[str] = field(default_factory=set)
    """New ones to which that has happened."""
    changes: int = 0
    loses_answer: Callable[[str, str], bool] = field(default=lambda *_: False)
    """Whether the answer to this call for a command is to be lost."""
    has_no_capacity: Callable[[str | None], bool] = field(default=lambda _: False)
    """Whether there is to be no capacity for the call of this command."""

    def put(self, instance: Ec2Instance) -> None:
        before = self.instances.get(instance.instance_id)
        self.changes += before != instance
        super().put(instance)
        if before is None or before.state is not instance.state:
            self.world.trace("ec2", f"{instance.instance_id} {instance.state}")
            if instance.state in _ENDS:
                seconds = self.world.random.uniform(*self.world.transition)
                self.world.loop.call_later(seconds, self._end, instance.instance_id, instance.state)

    def _end(self, instance_id: str, state: InstanceState) -> None:
        instance = self.instances[instance_id]
        if instance.state is not state:
            return
        instead = self.doomed.pop(instance_id, None) if state is InstanceState.PENDING else None
        if instead is not None:
            if instead is InstanceState.SHUTTING_DOWN:
                self.never_ran.add(instance_id)
            self.put(instance.model_copy(update={"state": instead, "state_reason": INTERNAL_ERROR}))
        else:
            self.put(instance.model_copy(update={"state": _ENDS[state]}))

    def _to(self, instance: Ec2Instance, state: InstanceState) -> Ec2Instance:
        return super()._to(instance.model_copy(update={"state_reason": None}), state)

    def doom(self, instance_id: str, state: InstanceState) -> None:
        """It will not come to run, but to this state, by a fault of EC2's own."""
        if self.instances[instance_id].state is InstanceState.PENDING:
            self.doomed[instance_id] = state

    def launched(self, instance: Ec2Instance, token: str, *, hide: bool) -> None:
        """See that nobody has two, and hide it for a while."""
        if instance.instance_id in self.tokens_of:
            return
        self.tokens_of[instance.instance_id] = token
        worker = instance.tags.get(WORKER_TAG)
        live = [
            each.instance_id
            for each in self.instances.values()
            if each.tags.get(WORKER_TAG) == worker and each.state is not InstanceState.TERMINATED
        ]
        if len(live) > 1:
            self.world.broken.append(f"1: worker {worker} has {len(live)} live instances: {live}")
        if hide:
            self.hidden.add(instance.instance_id)
            seconds = self.world.random.random() * LONGEST_HIDDEN
            self.world.loop.call_later(seconds, self.hidden.discard, instance.instance_id)

    def meddle(self) -> None:
        """Somebody with the console stops, starts or terminates an instance."""
        there = [each for each in self.instances.values() if each.state is not InstanceState.TERMINATED]
        if not there:
            return
        instance = self.world.random.choice(there)
        change = self.world.random.choice(("stop", "stop", "start", "terminate"))
        match change, instance.state:
            case "stop", InstanceState.RUNNING:
                after = InstanceState.STOPPING
            case "start", InstanceState.STOPPED:
                after = InstanceState.PENDING
            case "terminate", _:
                after = InstanceState.SHUTTING_DOWN
            case _:
                return
        self.world.seen["from outside", change] += 1
        self.world.changed_outside = True
        self._to(instance, after)


class Ec2OfProcess(Ec2):
    """The port, with everything that can happen to a call."""

    def __init__(self, process: Process, cloud: Cloud) -> None:
        self._process = process
        self._world = process.world
        self._cloud = cloud

    async def launch(self, parameters: LaunchParameters) -> Ec2Instance:
        hide = self._world.happens("hidden", "launch", 3)
        dies = self._world.happens("dies before it runs", "launch")

        def effect() -> Ec2Instance:
            instance = _run(self._cloud.launch(parameters))
            self._cloud.launched(instance, parameters.client_token, hide=hide)
            if dies:
                self._cloud.doom(instance.instance_id, InstanceState.SHUTTING_DOWN)
            return instance

        return await self._call("launch", effect, capacity=True)

    async def switch(self, api: str, region: str, instance_id: str) -> StateChange:
        name = api.removesuffix("Instances").lower()
        dies = name == "start" and self._world.happens("dies before it runs", name)

        def effect() -> StateChange:
            change = _run(self._cloud.switch(api, region, instance_id))
            if dies:
                self._cloud.doom(instance_id, InstanceState.STOPPED)
            return change

        return await self._call(name, effect, capacity=name == "start")

    async def terminate(self, region: str, instance_id: str) -> StateChange:
        return await self._call("terminate", lambda: _run(self._cloud.terminate(region, instance_id)))

    async def add_tags(self, region: str, instance_id: str, tags: Mapping[str, str]) -> None:
        await self._call("add_tags", lambda: _run(self._cloud.add_tags(region, instance_id, tags)))

    async def describe_many(self, region: str, instance_ids: Sequence[str]) -> Mapping[str, Ec2Instance]:
        return await self._call(
            "describe_many", lambda: _run(self._cloud.describe_many(region, instance_ids)), changes=False
        )

    async def status_checks(self, region: str, instance_ids: Sequence[str]) -> Mapping[str, StatusChecks]:
        return await self._call(
            "status_checks", lambda: _run(self._cloud.status_checks(region, instance_ids)), changes=False
        )

    async def list_instances(
        self, region: str, filters: Mapping[str, Sequence[str]]
    ) -> Sequence[Ec2Instance]:
        return await self._call(
            "list_instances", lambda: _run(self._cloud.list_instances(region, filters)), changes=False
        )

    async def find_image(self, region: str, name: str, owner: str | None = None) -> str | None:
        return await self._call(
            "find_image", lambda: _run(self._cloud.find_image(region, name)), changes=False
        )

    async def refresh(self, region: str) -> None:
        await self._process.step("refresh")

    async def _call(
        self, operation: str, effect: Callable[[], T], *, changes: bool = True, capacity: bool = False
    ) -> T:
        signed_at = self._world.loop.time()
        self._phase(CALLED, operation)
        try:
            return await self._answered(operation, effect, changes, capacity, signed_at)
        except OutcomeUnknownError:
            self._phase(UNCERTAIN, operation)
            raise

    def _phase(self, phase: str, operation: str) -> None:
        command_id = _command_id()
        if command_id is not None:
            self._cloud.on_call(phase, command_id, operation)

    async def _answered(
        self, operation: str, effect: Callable[[], T], changes: bool, capacity: bool, signed_at: float
    ) -> T:
        await self._process.step(f"{operation} begins", latency=1.0)
        if self._world.loop.time() - signed_at > SIGNED_FOR:
            raise EC2AuthenticationException("RequestExpired", remedy=Remedy.REFRESH, retryable=True)
        self._world.seen["asked", operation] += 1
        if self._world.happens("throttled", operation):
            raise EC2ThrottledException("slow down", remedy=Remedy.RETRY, retryable=True)
        if self._world.happens("refused credentials", operation, 0.3):
            raise EC2AuthenticationException("expired", remedy=Remedy.REFRESH, retryable=True)
        if capacity and (
            self._cloud.has_no_capacity(_command_id()) or self._world.happens("no capacity", operation)
        ):
            raise EC2CapacityException("none left", remedy=Remedy.FAIL, retryable=True)
        if self._world.happens("no effect, no answer", operation):
            raise OutcomeUnknownError("time-out")
        if changes and self._world.happens("late effect, no answer", operation):
            self._world.loop.call_later(self._world.random.random() * LATEST, _quietly, effect)
            raise OutcomeUnknownError("time-out")
        before = self._cloud.changes
        result = effect()
        if self._cloud.changes > before:
            took_effect(self._world, f"EC2 {operation}")
        await self._process.step(f"{operation} ends", latency=1.0)
        if self._world.happens("effect, no answer", operation) or self._planned(operation):
            raise OutcomeUnknownError("time-out")
        return result

    def _planned(self, operation: str) -> bool:
        """Whether the script wants this call to be unanswered."""
        command_id = _command_id()
        if command_id is None or not self._cloud.loses_answer(command_id, operation):
            return False
        self._world.fault("effect, no answer", operation, LINGERS)
        return True


def _command_id() -> str | None:
    """The command for which a call is made."""
    command_id: str | None = structlog.contextvars.get_contextvars().get("command_id")
    return command_id


def _run(call: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that does not wait."""
    try:
        call.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    raise AssertionError("it waits")


def _quietly(effect: Callable[[], object]) -> None:
    try:
        effect()
    except EC2Error:
        return
