"""The list of the calls of EC2: complete, accepted by EC2's own model, and nothing else is sent."""

import pytest

from cml_embedded.ec2.requests import check
from cml_tools import ec2_calls
from cml_tools.ec2_calls import Sent, collected, reference, unlisted
from cml_workers.ec2_adapter.port import Ec2
from cml_workers.ec2_adapter.power import POWERS
from support.listed_calls import all_sent, listed, not_listed


@pytest.mark.parametrize("each", all_sent(), ids=lambda each: f"{each.by}-{each.form['Action']}")
def test_ec2_takes_every_request_of_the_list(each: Sent):
    check(each.form)


def test_the_list_has_every_switch_and_every_page():
    assert {power.api for power in POWERS.values()} <= listed().keys()
    assert "NextToken" in listed()["DescribeInstances"].parameters
    assert listed()["DescribeInstances"].filters.keys() >= {"instance-id", "client-token", "tag:<key>"}
    assert listed()["RunInstances"].parameters["SubnetId"] == {"`parameters.subnet_id`"}


@pytest.mark.parametrize(
    ("form", "beyond"),
    [
        ({"Action": "StopInstances", "InstanceId.1": "i-1", "InstanceId.2": "i-2"}, []),
        ({"Action": "StopInstances", "InstanceId.1": "i-1", "Hibernate": "true"}, ["Hibernate"]),
        ({"Action": "RebootInstances", "InstanceId.1": "i-1"}, ["RebootInstances"]),
        ({"Action": "DescribeInstances", "Filter.1.Name": "tag:any", "Filter.1.Value.1": "x"}, []),
        ({"Action": "DescribeInstances", "Filter.1.Name": "vpc-id", "Filter.1.Value.1": "x"}, ["vpc-id"]),
        (
            {"Action": "RunInstances", "BlockDeviceMapping.1.Ebs.Iops": "8000"},
            ["BlockDeviceMapping.N.Ebs.Iops"],
        ),
    ],
)
def test_what_is_not_in_the_list_is_seen(form: dict[str, str], beyond: list[str]):
    assert unlisted(form, listed()) == beyond
    assert not_listed([{"operation": form["Action"], "parameters": form}]) == {
        f"{form['Action']}: {each}" for each in beyond
    }


def test_a_new_field_of_a_launch_has_to_be_listed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ec2_calls, "LAUNCH", {k: v for k, v in ec2_calls.LAUNCH.items() if k != "key_name"})
    with pytest.raises(LookupError, match="key_name"):
        ec2_calls.calls()


def test_a_new_call_of_the_port_has_to_be_listed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Ec2, "reboot", Ec2.terminate, raising=False)
    with pytest.raises(LookupError, match="reboot"):
        ec2_calls.calls()


def test_the_page_has_what_is_sent_and_where_it_comes_from(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        ec2_calls,
        "sent",
        lambda: _these(
            Sent(
                {"Action": "CreateTags", "Tag.1.Key": "k", "Tag.2.Key": "Name"}, "add_tags", {"k": "`tags`"}
            ),
            Sent(
                {"Action": "DescribeImages", "Filter.1.Name": "name", "Filter.1.Value.1": "k"},
                "find_image",
                {},
            ),
        ),
    )
    page = reference()
    assert "## CreateTags\nBy `add_tags`" in page
    assert "| `Tag.N.Key` | `Name`, `tags` |" in page
    assert "| filter `name` | `k` |" in page


async def _these(*found: Sent) -> list[Sent]:
    return list(found)


def test_the_same_parameter_of_two_calls_is_listed_once():
    both = collected(
        [
            Sent({"Action": "DescribeImages", "ImageId.1": "ami-1"}, "launch", {}),
            Sent({"Action": "DescribeImages", "ImageId.2": "ami-2"}, "find_image", {}),
        ]
    )
    assert both["DescribeImages"].by == {"launch", "find_image"}
    assert both["DescribeImages"].parameters == {"ImageId.N": {"`ami-1`", "`ami-2`"}}
