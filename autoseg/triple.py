"""Three whole numbers, one for each axis of a volume: a shape, a patch, a stride."""

from __future__ import annotations

Triple = tuple[int, int, int]  # x, y, z
