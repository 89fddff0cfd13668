"""How contract types treat unknown fields: an error in messages to us, ignored in messages from us."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A message to us: immutable, no coercion, an unknown field is an error."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


def encoded(message: Strict) -> bytes:
    """The body of a message to us, as ``WorkerClient`` sends it."""
    return message.model_dump_json(exclude_none=True).encode()


class Tolerant(BaseModel):
    """A message from us: immutable. A reader ignores fields that a later version added; code that makes one may add none.

    Validation of data (``model_validate``, ``model_validate_json``) ignores unknown fields. A constructor call with an
    unknown keyword is a mistake in our own code, and raises ValidationError.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    def __init__(self, /, **fields: Any) -> None:
        """Raises ValidationError, for an unknown field too."""
        self.__pydantic_validator__.validate_python(fields, self_instance=self, extra="forbid")

    # Pydantic's mark of a constructor that only validates: without it, validation would call the constructor for each
    # model that it reads, which is slower and would not ignore unknown fields.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]
