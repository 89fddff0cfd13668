"""Requests that EC2 would refuse are refused, with its code; what it documents is taken."""

from base64 import b64encode

import pytest
from botocore.exceptions import ClientError

from cml_embedded.ec2.answers import Refusal
from cml_embedded.ec2.requests import check

LAUNCH = {"Action": "RunInstances", "ImageId": "ami-11111111", "MinCount": "1", "MaxCount": "1"}
TAGGED = {**LAUNCH, "TagSpecification.1.ResourceType": "instance"}


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({"Action": "Nonsense"}, "InvalidAction"),
        ({**LAUNCH, "Nonsense": "1"}, "UnknownParameter"),
        ({**LAUNCH, "Placement.Nonsense": "1"}, "UnknownParameter"),
        ({**LAUNCH, "SecurityGroupId.first": "sg-11111111"}, "UnknownParameter"),
        ({"Action": "RunInstances", "ImageId": "ami-11111111", "MaxCount": "1"}, "MissingParameter"),
        ({"Action": "StopInstances"}, "MissingParameter"),
        ({**LAUNCH, "Monitoring.Nothing": "1"}, "UnknownParameter"),
        ({**LAUNCH, "MinCount": "one"}, "InvalidParameterValue"),
        ({**LAUNCH, "EbsOptimized": "yes"}, "InvalidParameterValue"),
        ({**LAUNCH, "TagSpecification.1.ResourceType": "nonsense"}, "InvalidParameterValue"),
        ({**LAUNCH, "MetadataOptions.HttpTokens": "perhaps"}, "InvalidParameterValue"),
        ({**LAUNCH, "CpuOptions.NestedVirtualization": "true"}, "InvalidParameterValue"),
        ({**TAGGED, "TagSpecification.1.Tag.1.Key": "k" * 129}, "InvalidParameterValue"),
        ({**TAGGED, "TagSpecification.1.Tag.1.Key": "AWS:k"}, "InvalidParameterValue"),
        (
            {**TAGGED, "TagSpecification.1.Tag.1.Key": "k", "TagSpecification.1.Tag.1.Value": "v" * 257},
            "InvalidParameterValue",
        ),
        (
            {
                "Action": "DescribeInstanceStatus",
                "Filter.1.Name": "instance-id",
                "Filter.1.Value.1": "i-0123456789abcdef0",
            },
            "InvalidParameterValue",
        ),
        (
            {"Action": "DescribeImages", "Filter.1.Name": "image-name", "Filter.1.Value.1": "x"},
            "InvalidParameterValue",
        ),
        (
            {
                "Action": "DescribeInstances",
                "Filter.1.Name": "instance-id",
                **{f"Filter.1.Value.{number}": "i-0" for number in range(1, 202)},
            },
            "FilterLimitExceeded",
        ),
        ({"Action": "DescribeInstances", "MaxResults": "4"}, "InvalidParameterValue"),
        ({"Action": "DescribeInstances", "MaxResults": "many"}, "InvalidParameterValue"),
        ({"Action": "DescribeInstanceStatus", "MaxResults": "4"}, "InvalidParameterValue"),
        ({"Action": "DescribeSubnets", "MaxResults": "4"}, "InvalidParameterValue"),
        ({"Action": "DescribeInstanceTypes", "MaxResults": "101"}, "InvalidParameterValue"),
        (
            {
                "Action": "DescribeInstanceTypes",
                **{f"InstanceType.{number}": "t3.micro" for number in range(1, 102)},
            },
            "InvalidParameterValue",
        ),
        ({"Action": "CreateTags", "ResourceId.1": "i-0123456789abcdef0"}, "MissingParameter"),
        (
            {
                "Action": "RunInstances",
                **{k: v for k, v in LAUNCH.items() if k not in ("Action", "MinCount")},
            },
            "MissingParameter",
        ),
        ({"Action": "DescribeInstanceStatus", "IncludeAllInstances": "True"}, "InvalidParameterValue"),
        ({"Action": "DescribeInstanceTypeOfferings", "LocationType": "city"}, "InvalidParameterValue"),
        ({**LAUNCH, "BlockDeviceMapping.1.Ebs.VolumeType": "gp4"}, "InvalidParameterValue"),
        ({**LAUNCH, "BlockDeviceMapping.1.Ebs.VolumeSize": "64GiB"}, "InvalidParameterValue"),
        ({**LAUNCH, "InstanceInitiatedShutdownBehavior": "halt"}, "InvalidParameterValue"),
        ({**LAUNCH, "MetadataOptions": "required"}, "InvalidParameterValue"),
        ({**LAUNCH, "ClientToken": "x" * 65}, "InvalidParameterValue"),
        ({**LAUNCH, "ClientToken": ""}, "InvalidParameterValue"),
        ({**LAUNCH, "ClientToken": "größe"}, "InvalidParameterValue"),
        ({**LAUNCH, "UserData": "#!/bin/sh"}, "InvalidParameterValue"),
        ({**LAUNCH, "UserData": b64encode(b"x" * 16385).decode()}, "InvalidParameterValue"),
        ({**LAUNCH, "ImageId": "ami-1"}, "InvalidAMIID.Malformed"),
        ({**LAUNCH, "SubnetId": "sn-11111111"}, "InvalidSubnetID.Malformed"),
        ({**LAUNCH, "SecurityGroupId.1": "default"}, "InvalidGroupId.Malformed"),
        ({**TAGGED, "TagSpecification.1.Tag.1.Key": ""}, "InvalidParameterValue"),
        (
            {**TAGGED, "TagSpecification.1.Tag.1.Key": "k", "TagSpecification.1.Tag.2.Key": "k"},
            "InvalidParameterValue",
        ),
        (
            {**TAGGED, **{f"TagSpecification.1.Tag.{n}.Key": f"k{n}" for n in range(1, 52)}},
            "TagLimitExceeded",
        ),
        ({"Action": "DescribeImages", "Filter.1.Name": "Name"}, "InvalidParameterValue"),
        ({"Action": "DescribeInstanceStatus", "Filter.1.Name": "tag:Name"}, "InvalidParameterValue"),
        (
            {
                "Action": "DescribeInstances",
                "Filter.1.Name": "instance-id",
                "Filter.2.Name": "client-token",
                **{f"Filter.{1 + number % 2}.Value.{number}": "x" for number in range(1, 202)},
            },
            "FilterLimitExceeded",
        ),
        ({"Action": "DescribeInstances", "MaxResults": "1001"}, "InvalidParameterValue"),
        (
            {"Action": "DescribeInstances", "MaxResults": "5", "InstanceId.1": "i-0123456789abcdef0"},
            "InvalidParameterCombination",
        ),
        (
            {
                "Action": "DescribeInstanceStatus",
                **{f"InstanceId.{number}": "i-0123456789abcdef0" for number in range(1, 102)},
            },
            "InvalidParameterValue",
        ),
    ],
)
def test_what_ec2_would_not_take_is_refused(form: dict[str, str], code: str):
    with pytest.raises(Refusal) as refused:
        check(form)
    assert refused.value.code == code


@pytest.mark.parametrize(
    "form",
    [
        LAUNCH,
        {**TAGGED, "TagSpecification.1.Tag.1.Key": "k" * 128, "TagSpecification.1.Tag.1.Value": "v" * 256},
        {**LAUNCH, "InstanceType": "z99.newer-than-the-model", "CpuOptions.CoreCount": "4"},
        {**LAUNCH, "CpuOptions.NestedVirtualization": "enabled"},
        {"Action": "DescribeInstances", "Filter.1.Name": "tag:cml:deployment", "Filter.1.Value.1": "default"},
        {"Action": "DescribeInstances", "MaxResults": "1000", "Version": "2016-11-15"},
        {"Action": "DescribeInstanceStatus", "IncludeAllInstances": "true", "InstanceId.1": "i-0"},
        {
            "Action": "DescribeInstanceStatus",
            **{f"InstanceId.{n}": "i-0123456789abcdef0" for n in range(1, 101)},
        },
        {"Action": "DescribeInstances", "MaxResults": "5", "Filter.1.Name": "client-token"},
        {"Action": "DescribeSubnets", "Filter.1.Name": "tag:Name", "Filter.1.Value.1": "lab"},
        {**LAUNCH, "ClientToken": "x" * 64, "UserData": b64encode(b"x" * 16384).decode()},
        {**TAGGED, **{f"TagSpecification.1.Tag.{n}.Key": f"k{n}" for n in range(1, 51)}},
        {
            **TAGGED,
            "TagSpecification.1.Tag.1.Key": "k",
            "TagSpecification.2.ResourceType": "volume",
            "TagSpecification.2.Tag.1.Key": "k",
        },
    ],
)
def test_what_ec2_documents_is_taken(form: dict[str, str]):
    check(form)


def test_a_request_is_refused_over_http(ec2):
    with pytest.raises(ClientError) as refused:
        ec2.describe_instance_status(Filters=[{"Name": "instance-id", "Values": ["i-0123456789abcdef0"]}])
    assert refused.value.response["Error"]["Code"] == "InvalidParameterValue"
