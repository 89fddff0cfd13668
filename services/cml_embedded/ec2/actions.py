"""EC2's actions: what moto does not do as EC2 does, see the developer's and the API reference of EC2."""

import re
import time
from collections.abc import Mapping, Sequence

from cml_embedded.ec2.account import Account
from cml_embedded.ec2.answers import Answer, Refusal, response, unknown
from cml_embedded.ec2.backend import Backend, Environ
from cml_embedded.ec2.faults import Fault
from cml_embedded.ec2.instances import CODES, Instances
from cml_embedded.ec2.journal import Instance
from cml_embedded.ec2.launching import check_capacity, check_launch

_POWER: Mapping[str, tuple[frozenset[str], str, frozenset[str]]] = {
    # action: states it acts on, the state that follows, states it leaves as they are; others are refused
    "StartInstances": (frozenset({"stopped"}), "pending", frozenset({"pending", "running"})),
    "StopInstances": (frozenset({"running"}), "stopping", frozenset({"stopping", "stopped"})),
    "TerminateInstances": (
        frozenset({"pending", "running", "stopping", "stopped"}),
        "shutting-down",
        frozenset({"shutting-down", "terminated"}),
    ),
}
_RESULT_ELEMENT = "instancesSet"
_NOWHERE = "i-00000000000000000"


class Actions:
    """Each of them first asks whether the caller may do it; a dry run ends where something would be done or shown."""

    def __init__(self, backend: Backend, instances: Instances, account: Account) -> None:
        self._backend = backend
        self._instances = instances
        self._account = account

    def act(
        self, environ: Environ, caller: tuple[str, str], form: dict[str, str], fault: Fault | None
    ) -> Answer:
        """Carry one out; an instance may suffer from a fault that is planted. Raises Refusal.

        ``caller``: an access key, and the region it is used in.
        """
        access_key, region = caller
        action = form.get("Action", "")
        self._account.authorize(region, f"ec2:{action}")
        dies = (fault.code, fault.message) if fault and fault.effect == "dies" else None
        self._instances.settle()
        for name, value in form.items():
            if re.fullmatch(r"InstanceId(\.\d+)?", name):
                self._instances.check(value, region)
            if re.fullmatch(r"(InstanceId|ResourceId)(\.\d+)?", name) and value in self._instances:
                self._account.authorize_change(region, access_key, form, value, self._instances[value].tags)
        if action == "RunInstances":
            check_launch(form, region, self._account, self._backend)
        if action in ("CreateTags", "DeleteTags"):
            self._check_tagged(region, form)
        if form.get("DryRun") == "true":
            raise Refusal(
                "DryRunOperation", "Request would have succeeded, but DryRun flag is set.", status=412
            )
        if action in _POWER:
            instance_ids = [v for k, v in form.items() if k.startswith("InstanceId.")]
            return self._power(action, region, instance_ids, dies)
        if action == "RunInstances":
            return self._run(environ, region, form, fault.hide_seconds if fault else 0.0, dies)
        if action in ("CreateTags", "DeleteTags"):
            return self._tag(environ, form)
        if action == "ModifyInstanceAttribute" and "InstanceType.Value" in form:
            self._instances.resize(form["InstanceId"], form["InstanceType.Value"])
            return 200, response(action, "<return>true</return>")
        answer = self._account.answer(region, form)
        if answer is None:
            answer = self._backend.ask(environ, self._visible(action, region, form))
        return self._account.corrected(region, form, answer)

    def _check_tagged(self, region: str, form: Mapping[str, str]) -> None:
        for name, resource in form.items():
            if name.startswith("ResourceId.") and resource.startswith("i-"):
                self._instances.check(resource, region)
                self._account.check_tag_keys(region, form, self._instances[resource].form)

    def _run(
        self,
        environ: Environ,
        region: str,
        form: dict[str, str],
        hide_seconds: float,
        dies: tuple[str, str] | None,
    ) -> Answer:
        if token := form.get("ClientToken"):
            before = [each for each in self._instances if (each.region, each.token) == (region, token)]
            if before:
                return 200, _same_again(before, form).encode()
        check_capacity(form, region, self._account, self._backend)
        instance_type, quota = form.get("InstanceType", "m1.small"), self._account.quota(region)
        least, most = int(form["MinCount"]), int(form["MaxCount"])
        count = self._instances.fitting(region, instance_type, quota, least, most)
        status, content = self._backend.launch(environ, form, count)
        if status == 200:
            answer = content.decode()
            for instance_id in dict.fromkeys(re.findall(r"<instanceId>(i-[0-9a-f]+)</instanceId>", answer)):
                self._instances.launched(
                    instance_id,
                    region,
                    form,
                    answer,
                    hide_seconds=hide_seconds,
                    dies=dies or self._account.lost_key(region, form),
                )
        return status, content

    def _power(
        self, action: str, region: str, instance_ids: list[str], dies: tuple[str, str] | None
    ) -> Answer:
        acting, following, indifferent = _POWER[action]
        for instance_id in instance_ids:
            known = self._instances[instance_id]
            if known.state not in acting | indifferent:
                raise Refusal(
                    "IncorrectInstanceState",
                    f"The instance '{instance_id}' is not in a state from which it can be "
                    f"{action.removesuffix('Instances').lower()}ed: {known.state}.",
                )
            if (
                action == "TerminateInstances"
                and self._instances.moto(instance_id, region).disable_api_termination
            ):
                raise Refusal(
                    "OperationNotPermitted",
                    f"The instance '{instance_id}' may not be terminated. Modify its 'disableApiTermination' "
                    "instance attribute and try again.",
                )
        items = []
        for instance_id in instance_ids:
            known = self._instances[instance_id]
            before = known.state
            if before in acting:
                known.fate = ("stopped", *dies) if dies and following == "pending" else None
                self._instances.order(known, following)
            items.append(
                f"<item><instanceId>{instance_id}</instanceId>"
                f"<currentState><code>{CODES[known.state]}</code><name>{known.state}</name></currentState>"
                f"<previousState><code>{CODES[before]}</code><name>{before}</name></previousState></item>"
            )
        return 200, response(action, f"<{_RESULT_ELEMENT}>{''.join(items)}</{_RESULT_ELEMENT}>")

    def _tag(self, environ: Environ, form: dict[str, str]) -> Answer:
        resources = [value for name, value in form.items() if name.startswith("ResourceId.")]
        answer = self._backend.ask(environ, form)
        if answer[0] == 200:
            for resource in resources:
                if resource in self._instances:
                    self._instances.tagged(resource)
        return answer

    def _visible(self, action: str, region: str, form: dict[str, str]) -> dict[str, str]:
        """The request without instances that are not visible yet, and without the filter that moto lacks."""
        hidden = {each.instance_id for each in self._instances if each.hidden_until > time.time()}
        asked = dict(form)
        for name, value in form.items():
            if re.fullmatch(r"Filter\.\d+\.Name", name) and value == "client-token":
                prefix = name.removesuffix("Name")
                tokens = {v for k, v in form.items() if k.startswith(f"{prefix}Value.")}
                launched = [
                    known.instance_id
                    for known in self._instances
                    if known.region == region and known.token in tokens
                ]
                asked = {k: v for k, v in asked.items() if not k.startswith(f"{prefix}Value.")}
                asked[name] = "instance-id"
                asked |= {f"{prefix}Value.{n}": i for n, i in enumerate(launched or [_NOWHERE], 1)}
        if hidden and action.startswith("DescribeInstance"):
            for name, value in asked.items():
                if value in hidden and name.startswith("InstanceId."):
                    raise unknown(value)
                if value in hidden:
                    asked[name] = _NOWHERE
        return asked


def _same_again(launched: Sequence[Instance], form: Mapping[str, str]) -> str:
    """EC2 API reference, *Ensuring idempotency*."""
    answer = launched[0].response
    if _what_counts(launched[0].form) != _what_counts(form):
        raise Refusal("IdempotentParameterMismatch", "The parameters of the first request were others.")
    if all(known.state in ("terminated", "shutting-down") for known in launched):
        raise Refusal("IdempotentInstanceTerminated", "The instance of this token was terminated.")
    for known in launched:
        answer = re.sub(
            rf"(<instanceId>{known.instance_id}</instanceId>.*?<instanceState>).*?(</instanceState>)",
            rf"\g<1><code>{CODES[known.state]}</code><name>{known.state}</name>\g<2>",
            answer,
            flags=re.DOTALL,
        )
    return answer


def _what_counts(form: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in form.items() if name not in ("ClientToken", "DryRun", "Version")}
