"""Starting, stopping and terminating an instance.

EC2 is called first where the instance, as it was seen last, allows it: its answer says what it was and what it is, and one
look completes that. It is looked at first where an earlier attempt may have got through, and after a refusal for its state.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cml_contracts.events import Intent
from cml_contracts.instance import Ec2Instance, InstanceState
from cml_workers.domain.messages import OperationSucceeded
from cml_workers.domain.operations import START, STOP
from cml_workers.ec2_adapter.attempts import Turn
from cml_workers.ec2_adapter.errors import EC2Exception, Remedy
from cml_workers.ec2_adapter.instances import ENDING, Gone, Instances, InTransition


@dataclass(frozen=True, slots=True)
class Power:
    """``api``: EC2's call; ``before``: the state in which EC2 takes the call; ``done``: those in which there is nothing left to do."""

    api: str
    before: InstanceState
    done: tuple[InstanceState, InstanceState]


POWERS: Mapping[type[Intent], Power] = {
    START.intent: Power(
        "StartInstances",
        before=InstanceState.STOPPED,
        done=(InstanceState.PENDING, InstanceState.RUNNING),
    ),
    STOP.intent: Power(
        "StopInstances",
        before=InstanceState.RUNNING,
        done=(InstanceState.STOPPING, InstanceState.STOPPED),
    ),
}
"""How each intent of ``SWITCHES`` is carried out."""


async def switch(turn: Turn, power: Power, here: Instances) -> OperationSucceeded:
    """Start or stop the instance. Raises NotYet, Gone, EC2Error."""
    refused: EC2Exception | None = None
    if not turn.attempt.is_uncertain and turn.instance.state is power.before:
        try:
            return turn.succeeded(await _call(turn, power, turn.instance, here))
        except EC2Exception as error:
            if error.remedy is not Remedy.DESCRIBE:
                raise
            refused = error
    instance = await here.see(turn.worker)
    if instance.state in power.done:
        return turn.succeeded(instance)
    if instance.state in ENDING:
        raise await here.ended(turn.worker, instance)
    if instance.state is not power.before:
        raise InTransition(instance)
    await here.noted(turn.worker, instance)  # the call may be refused
    if refused is not None:
        raise refused  # EC2 does not agree with itself yet
    return turn.succeeded(await _call(turn, power, instance, here))


async def is_switched(turn: Turn, power: Power, here: Instances) -> OperationSucceeded | None:
    """Whether it is done, as far as EC2 shows."""
    instance = await here.see(turn.worker)
    if instance.state in power.done:
        return turn.succeeded(instance)
    await here.noted(turn.worker, instance)
    return None


async def terminate(turn: Turn, here: Instances) -> OperationSucceeded:
    """The worker is terminated when EC2 says so, not when EC2 says that it will be. Raises NotYet, EC2Error."""
    instance = turn.instance
    try:
        if turn.seen is None and (turn.attempt.is_uncertain or instance.state in ENDING):
            instance = await here.see(turn.worker)
        if instance.state not in ENDING:
            await here.noted(turn.worker, instance)  # the call may be refused
            try:
                instance = await _terminate(turn, instance, here)
            except EC2Exception as error:
                if error.remedy is not Remedy.DESCRIBE:
                    raise
                instance = await here.see(turn.worker)
                if instance.state not in ENDING:
                    await here.noted(turn.worker, instance)
                    raise
    except Gone:
        return turn.succeeded(None, warning="the instance was gone before it was terminated")
    if instance.state is InstanceState.TERMINATED:
        return turn.succeeded(instance)
    raise InTransition(instance)


async def is_terminated(turn: Turn, here: Instances) -> OperationSucceeded | None:
    """Whether it is done, as far as EC2 shows. Raises InTransition while it is on its way."""
    instance = await here.see(turn.worker)
    if instance.state is InstanceState.SHUTTING_DOWN:
        raise InTransition(instance)
    if instance.state is InstanceState.TERMINATED:
        return turn.succeeded(instance)
    await here.noted(turn.worker, instance)
    return None


async def _call(turn: Turn, power: Power, before: Ec2Instance, here: Instances) -> Ec2Instance:
    """The instance after EC2 accepted the call; until that is reported, the operation is uncertain."""
    region, instance_id = before.aws_region, before.instance_id
    change = await here.change(
        turn.worker,
        turn.lease,
        lambda lease: here.calls.switch(power.api, region, instance_id, lease),
    )
    turn.attempt.uncertain_since = here.now()
    described = await here.calls.describe(region, instance_id)
    if described is None or described.state is change.previous:
        # Not visible yet: the answer of the call itself is newer.
        return (described or before).model_copy(update={"state": change.current})
    return described


async def _terminate(turn: Turn, before: Ec2Instance, here: Instances) -> Ec2Instance:
    """Likewise. Nothing can undo it, so no recheck is needed if it comes late."""
    change = await here.calls.terminate(before.aws_region, before.instance_id, turn.lease)
    turn.attempt.uncertain_since = here.now()
    return before.model_copy(update={"state": change.current})
