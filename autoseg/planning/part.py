"""What all parts of a plan share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic.fields import FieldInfo

FOR_ID = {"purpose": "id"}  # the context of a dump that an id is made of
SINCE = "since"


def _is_upright(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError(f"{list(limits)} is upside down; write [low, high]")
    return limits


def _reaches_one(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[1] < 1:
        raise ValueError(
            f"{list(limits)} ends below 1; batchgenerators draws half of all below 1 "
            "and half above: write a range that reaches 1"
        )
    return limits


Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
LabelValue = Annotated[int, Field(ge=0, lt=2**16)]
NotNegative = Annotated[float, Field(ge=0)]
Range = Annotated[tuple[float, float], AfterValidator(_is_upright)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_is_upright)]
FactorRange = Annotated[PositiveRange, AfterValidator(_reaches_one)]
NotNegativeRange = Annotated[tuple[NotNegative, NotNegative], AfterValidator(_is_upright)]
CountRange = Annotated[tuple[Count, Count], AfterValidator(_is_upright)]
Size3 = tuple[Count, Count, Count]
Axes = tuple[Literal[0, 1, 2], ...]


def since(version: str) -> dict[str, Any]:
    """Mark a key that came after version 0.1.0: `Field(..., json_schema_extra=since("0.2.0"))`.

    Its default must do what was done before there was the key, and never change: where a plan has
    the default, its id is that of a plan without the key.
    """
    return {SINCE: version}


class Part(BaseModel):
    """A frozen part of a plan that knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _for_id(
        self, values_of: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        values: dict[str, Any] = values_of(self)
        if info.context == FOR_ID:
            for key, field in _later_keys(type(self)).items():
                if getattr(self, key) == field.get_default(call_default_factory=True):
                    values.pop(key, None)
        return values


def _later_keys(kind: type[Part]) -> dict[str, FieldInfo]:
    """The keys that are marked by `since`."""
    return {
        key: field
        for key, field in kind.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and SINCE in field.json_schema_extra
    }
