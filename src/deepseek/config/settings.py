"""What every group of settings has in common: frozen, complete, exact about types.

Numbers are strict (`epochs: "5"` and `epochs: true` are errors, not 5 and 1), unknown keys are
errors, and the docstring under a field is its description in the JSON schema.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict

Auto = Literal["auto"]
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Switch = Annotated[bool, Strict()]
Beta = Annotated[float, Strict(), Field(ge=0, lt=1)]
BetaPair = tuple[Beta, Beta]


class Settings(BaseModel):
    """Base of all groups of settings."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=False,
        protected_namespaces=(),
    )


def unit(name: str) -> dict:
    """Return the schema entry that gives a field its unit, for messages and editors."""
    return {"unit": name}
