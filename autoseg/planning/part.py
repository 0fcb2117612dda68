"""What all parts of a plan share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


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


class Part(BaseModel):
    """A frozen part of a plan that knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
