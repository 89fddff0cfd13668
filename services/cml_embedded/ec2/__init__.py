"""The parts of the EC2 simulator: moto's EC2, corrected where it differs from AWS's."""

import os

# Before moto is imported. Only our own images exist; unknown ones and unknown instance types are errors, as in EC2.
os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"
os.environ["MOTO_ENABLE_AMI_VALIDATION"] = "true"
os.environ["MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION"] = "true"
