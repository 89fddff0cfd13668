"""EC2 in memory, beside its port: the states and the idempotency of the real one, and faults on order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cml_contracts.instance import Ec2Instance, InstanceState, LaunchParameters
from cml_workers.ec2_adapter.errors import (
    EC2Exception,
    EC2InstanceCreationException,
    EC2InstanceNotFoundException,
    EC2InstanceOperationException,
    Remedy,
)


@dataclass
class Fault:
    """The next call of an operation ends in this error; ``after``: its effect happens all the same."""

    operation: str
    error: EC2Exception
    after: bool = False


@dataclass
class FakeEc2:
    """Implements the port ``Ec2``; an instance settles when a test says so."""

    instances: dict[str, Ec2Instance] = field(default_factory=dict)
    tokens: dict[str, tuple[LaunchParameters, str]] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    images: dict[tuple[str, str], str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    refreshed: int = 0

    def fail(self, operation: str, error: EC2Exception, *, after: bool = False, times: int = 1) -> None:
        """Plant a fault."""
        self.faults += [Fault(operation, error, after) for _ in range(times)]

    def put(self, instance: Ec2Instance) -> None:
        """An instance that is there."""
        self.instances[instance.instance_id] = instance

    def settle(self) -> None:
        """Every transition comes to its end."""
        ends = {
            InstanceState.PENDING: InstanceState.RUNNING,
            InstanceState.STOPPING: InstanceState.STOPPED,
            InstanceState.SHUTTING_DOWN: InstanceState.TERMINATED,
        }
        for instance in list(self.instances.values()):
            self._to(instance, ends.get(instance.state, instance.state))

    async def launch(self, parameters: LaunchParameters) -> Ec2Instance:
        fault = self._enter("launch")
        known = self.tokens.get(parameters.client_token)
        if known is not None:
            before, instance_id = known
            if before != parameters:
                raise EC2InstanceCreationException("parameters changed", remedy=Remedy.LOOK_UP_LAUNCH)
            instance = self.instances[instance_id]
            if instance.state is InstanceState.TERMINATED:
                raise EC2InstanceCreationException("terminated", remedy=Remedy.LOOK_UP_LAUNCH)
        else:
            instance = Ec2Instance(
                instance_id=f"i-{len(self.instances):017x}",
                aws_region=parameters.aws_region,
                state=InstanceState.PENDING,
                instance_type=parameters.instance_type,
                ami_id=parameters.ami_id,
                tags=parameters.tags,
            )
            self.put(instance)
            self.tokens[parameters.client_token] = (parameters, instance.instance_id)
        self._leave(fault)
        return instance

    async def start(self, region: str, instance_id: str) -> InstanceState:
        return self._power("start", instance_id, InstanceState.STOPPED, InstanceState.PENDING)

    async def stop(self, region: str, instance_id: str) -> InstanceState:
        return self._power("stop", instance_id, InstanceState.RUNNING, InstanceState.STOPPING)

    async def terminate(self, region: str, instance_id: str) -> InstanceState:
        fault = self._enter("terminate")
        instance = self._known(instance_id)
        if instance.state is not InstanceState.TERMINATED:
            instance = self._to(instance, InstanceState.SHUTTING_DOWN)
        self._leave(fault)
        return instance.state

    async def add_tags(self, region: str, instance_id: str, tags: Mapping[str, str]) -> None:
        fault = self._enter("add_tags")
        instance = self._known(instance_id)
        self.put(instance.model_copy(update={"tags": {**instance.tags, **tags}}))
        self._leave(fault)

    async def tags(self, region: str, instance_id: str) -> dict[str, str]:
        self._leave(self._enter("tags"))
        return dict(self._known(instance_id).tags)

    async def describe(self, region: str, instance_id: str) -> Ec2Instance | None:
        self._leave(self._enter("describe"))
        return None if instance_id in self.hidden else self.instances.get(instance_id)

    async def find_launched(self, region: str, client_token: str) -> Sequence[Ec2Instance]:
        self._leave(self._enter("find_launched"))
        known = self.tokens.get(client_token)
        return [] if known is None or known[1] in self.hidden else [self.instances[known[1]]]

    async def find_image(self, region: str, name: str) -> str | None:
        self._leave(self._enter("find_image"))
        return self.images.get((region, name))

    async def refresh(self) -> None:
        self.refreshed += 1

    def _power(
        self, name: str, instance_id: str, before: InstanceState, after: InstanceState
    ) -> InstanceState:
        fault = self._enter(name)
        instance = self._known(instance_id)
        if instance.state is not before:
            raise EC2InstanceOperationException(f"{name} while {instance.state}", remedy=Remedy.DESCRIBE)
        self._to(instance, after)
        self._leave(fault)
        return after

    def _known(self, instance_id: str) -> Ec2Instance:
        if instance_id not in self.instances or instance_id in self.hidden:
            raise EC2InstanceNotFoundException(f"{instance_id} does not exist", remedy=Remedy.DESCRIBE)
        return self.instances[instance_id]

    def _to(self, instance: Ec2Instance, state: InstanceState) -> Ec2Instance:
        moved = instance.model_copy(update={"state": state})
        self.put(moved)
        return moved

    def _enter(self, operation: str) -> Fault | None:
        self.calls.append(operation)
        fault = next((each for each in self.faults if each.operation == operation), None)
        if fault is not None:
            self.faults.remove(fault)
            if not fault.after:
                raise fault.error
        return fault

    def _leave(self, fault: Fault | None) -> None:
        if fault is not None:
            raise fault.error
