"""How contract types treat unknown fields: an error in messages to us, ignored in messages from us."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A message to us: immutable, no coercion, an unknown field is an error."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Tolerant(BaseModel):
    """A message from us: immutable; a reader ignores fields that a later version added."""

    model_config = ConfigDict(frozen=True, extra="ignore")
