"""What all sections have in common."""

from hashlib import sha256
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Frozen, and a key it does not know is an error that names the key."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def fingerprint(config: Section) -> str:
    """Cache key over every field, so that a new field cannot be forgotten."""
    return sha256(config.model_dump_json().encode()).hexdigest()[:12]
