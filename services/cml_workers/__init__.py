"""The services of cml-workers; one folder a role."""

__version__ = "0.1.0"
