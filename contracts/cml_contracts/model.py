"""How contract types treat what they do not know: commands refuse it, everything else passes over it."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """What others ask of us: immutable, no coercion, an unknown field is an error."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Tolerant(BaseModel):
    """What we tell others: immutable; a reader passes over fields that a later version added."""

    model_config = ConfigDict(frozen=True, extra="ignore")
