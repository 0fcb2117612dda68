"""What all parts of a plan share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]
Size3 = tuple[Count, Count, Count]
Axes = tuple[Literal[0, 1, 2], ...]


class Part(BaseModel):
    """A frozen part of a plan that knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
