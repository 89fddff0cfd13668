"""EC2 in memory, beside its port: the states and the idempotency of the real one, and faults on order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cml_contracts.instance import CONSENT_TAG, DEPLOYMENT_TAG, Ec2Instance, InstanceState, LaunchParameters
from cml_workers.ec2_adapter.errors import (
    EC2AuthenticationException,
    EC2Error,
    EC2InstanceCreationException,
    EC2InstanceNotFoundException,
    EC2InstanceOperationException,
    Remedy,
)
from cml_workers.ec2_adapter.port import MOST_CHECKED, MOST_DESCRIBED, StateChange, StatusChecks


@dataclass
class Fault:
    """The next call of an operation ends in this error; ``after``: its effect happens all the same."""

    operation: str
    error: EC2Error
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
    refreshed: list[str] = field(default_factory=list)
    """Regions whose credentials were read again."""

    def fail(self, operation: str, error: EC2Error, *, after: bool = False, times: int = 1) -> None:
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

    async def switch(self, api: str, region: str, instance_id: str) -> StateChange:
        before, done = _SWITCHES[api]
        return self._power(api.removesuffix("Instances").lower(), instance_id, before, done)

    async def terminate(self, region: str, instance_id: str) -> StateChange:
        fault = self._enter("terminate")
        instance = self._known(instance_id)
        after = instance
        if instance.state is not InstanceState.TERMINATED:
            after = self._to(instance, InstanceState.SHUTTING_DOWN)
        self._leave(fault)
        return StateChange(instance.state, after.state)

    async def add_tags(self, region: str, instance_id: str, tags: Mapping[str, str]) -> None:
        fault = self._enter("add_tags")
        instance = self._known(instance_id)
        owner = instance.tags.get(DEPLOYMENT_TAG)
        ours = tags.get(DEPLOYMENT_TAG)
        if ours and (owner not in (None, ours) or instance.tags.get(CONSENT_TAG) != ours):
            # As the shipped IAM policy has it.
            raise EC2AuthenticationException("UnauthorizedOperation", remedy=Remedy.FAIL)
        self.put(instance.model_copy(update={"tags": {**instance.tags, **tags}}))
        self._leave(fault)

    async def describe_many(self, region: str, instance_ids: Sequence[str]) -> Mapping[str, Ec2Instance]:
        assert len(instance_ids) <= MOST_DESCRIBED
        self._leave(self._enter("describe_many"))
        return {each: self.instances[each] for each in instance_ids if self._is_visible(region, each)}

    async def status_checks(self, region: str, instance_ids: Sequence[str]) -> Mapping[str, StatusChecks]:
        assert len(instance_ids) <= MOST_CHECKED
        self._leave(self._enter("status_checks"))
        return {
            each: StatusChecks(check, check)
            for each in instance_ids
            if self._is_visible(region, each)
            for running in [self.instances[each].state is InstanceState.RUNNING]
            for check in ["ok" if running else "not-applicable"]
        }

    async def list_instances(
        self, region: str, filters: Mapping[str, Sequence[str]]
    ) -> Sequence[Ec2Instance]:
        self._leave(self._enter("list_instances"))
        return [
            instance
            for instance_id, instance in self.instances.items()
            if self._is_visible(region, instance_id)
            and all(self._field(instance, name) in values for name, values in filters.items())
        ]

    async def find_image(self, region: str, name: str, owner: str | None = None) -> str | None:
        self._leave(self._enter("find_image"))
        return self.images.get((region, name))

    async def refresh(self, region: str) -> None:
        self.refreshed.append(region)

    def _power(
        self, name: str, instance_id: str, before: InstanceState, done: tuple[InstanceState, InstanceState]
    ) -> StateChange:
        fault = self._enter(name)
        instance = self._known(instance_id)
        after = instance
        if instance.state is before:
            after = self._to(instance, done[0])
        elif instance.state not in done:
            raise EC2InstanceOperationException(f"{name} while {instance.state}", remedy=Remedy.DESCRIBE)
        self._leave(fault)
        return StateChange(instance.state, after.state)

    def _is_visible(self, region: str, instance_id: str) -> bool:
        known = self.instances.get(instance_id)
        return known is not None and known.aws_region == region and instance_id not in self.hidden

    def _field(self, instance: Ec2Instance, name: str) -> str | None:
        """What a filter of that name looks at; filters that EC2 does not have are none here, either."""
        match name.partition(":"):
            case ("tag", ":", key):
                return instance.tags.get(key)
            case ("instance-state-name", "", ""):
                return instance.state.value
            case ("client-token", "", ""):
                tokens = (
                    token for token, (_, launched) in self.tokens.items() if launched == instance.instance_id
                )
                return next(tokens, None)
            case _:
                raise AssertionError(f"EC2 has no filter {name!r}, or none that is used")

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


_SWITCHES = {
    "StartInstances": (InstanceState.STOPPED, (InstanceState.PENDING, InstanceState.RUNNING)),
    "StopInstances": (InstanceState.RUNNING, (InstanceState.STOPPING, InstanceState.STOPPED)),
}
