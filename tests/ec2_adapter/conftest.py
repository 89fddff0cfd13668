"""The voice of the adapter's tests."""

from support.given_adapter import given

__all__ = ["given"]
