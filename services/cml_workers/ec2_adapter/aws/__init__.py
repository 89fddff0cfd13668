"""The port ``Ec2`` on AWS."""

from cml_workers.ec2_adapter.aws.client import AwsEc2Client

__all__ = ["AwsEc2Client"]
